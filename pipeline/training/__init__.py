"""Training a base together with its head.

dataset.py     which rows train and which judge, with their targets
batches.py     images of these rows, decoded once, as batches prepared while the step runs
recipes.py     the settings that are left out, as the recipe fills them in
start.py       the fitted head that it begins with
network.py     base and head as one network, and which of its parts are trained
cut.py         where what is frozen ends, and the network behind it
cached.py      what passes the cut, computed once
loop.py        the epochs: steps, measures, the best one kept
line.py        the line from a fitted head's network to the tuned one, and the verdict
processes.py   several processes that train one network
checkpoint.py  a training on the disk after each epoch, to go on from
"""
