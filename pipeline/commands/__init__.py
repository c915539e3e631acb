"""The commands, one file each, named as the command: functions that take paths and return a result.

extract.py   a frozen base over images, once, into a feature file
fit_head.py  a head on cached features
finetune.py  base and head trained together on images
predict.py   a saved model's answers for new images
evaluate.py  a saved model's scores on labelled images or features
export.py    a saved model as one ONNX file
fetch.py     lists of URLs to a folder of images
compare.py   models beside each other on the same rows
plot.py      pictures of a model, a feature file or a source
run.py       the steps of an experiment file, as far as they are not up to date
experiment.py its tables, references and paths
verify.py    a feature file checked, and rows of it recomputed
info.py      a feature file or a model folder described
merge.py     parts of a feature file joined
label.py     numbers drawn for images by their class, as a table
doctor.py    what a bug report needs to know of a machine
bases.py     the networks that can serve as bases
demo.py      all of it on digits that ship with scikit-learn
results.py   what they return: the keys of `--json`, a summary for a person
"""
