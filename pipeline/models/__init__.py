"""Trained models: a folder on disk, and the answers that it gives.

card.py         README.md of a model folder, for people and for model hubs
embeddings.py   a feature file as a table that viewers of embeddings read
folder.py       `save_model` and the files of a model folder: format, checksums
model.py        `Model`: base and head of a folder, from images to answers
predictions.py  predictions.csv
seen.py         the images that a model was trained on
journal.py      the steps of an experiment, by what each was made
pictures.py     pictures of what it was trained on, and of how that went
provenance.py   the request that a model was made by, and the state of its inputs
"""
