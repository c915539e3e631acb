"""Tables of an experiment's file, for what runs one and for what reads one."""

EXTRACT = """
[extract]
source = "splits"
output = "f.h5"
base = "squeezenet1_1"
weights = "embedded"
"""
HEAD = """
[[fit-head]]
store = "f.h5"
output = "{head}"
head = "{head}"
"""
TUNED = """
[finetune]
source = "splits"
output = "tuned"
head = "linear"
train = "head"
epochs = 1
"""
