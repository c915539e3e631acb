"""Images: from the bytes of a file to the uint8 pixels that a base sees.

prescan.py    parts of a file, counted before a decoder sees them
decoding.py   bytes to RGB pixels, under one written policy
transform.py  resize, crop, normalise, as the makers of a base's weights did
augment.py    random views
preprocess.py the three above by a recipe: bytes to views
loading.py    records to batches of pixels, on threads, in order
album.py      single images of a source by id, for pictures of a few
"""
