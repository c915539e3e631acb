"""The feature store: one HDF5 file of features, ids, labels and status that is never wrong without saying so.

header.py     format 1: the columns, and where each byte lies
layout.py     the HDF5 around them, drawn in memory
inspection.py what other programs find when they read it as HDF5
rows.py       rows of one file at the level of bytes, with their checksums
plan.py       what a run asks of a file
reuse.py      which rows of earlier files may be kept
writer.py     `StoreWriter`: crash-safe, resumable, incremental
extraction.py the loop that fills a file
parts.py      which ranges of rows make one store
reader.py     `FeatureStore`: one file, or a folder of parts
beside.py     several files of the same images, joined by id
dataset.py    rows as a PyTorch dataset
"""

from pipeline.store.beside import SideBySide, layer_names, open_stores
from pipeline.store.header import Environment, Part
from pipeline.store.layout import LayerSpec
from pipeline.store.parts import part_range
from pipeline.store.reader import FeatureStore, is_store
from pipeline.store.reuse import Source, earlier_headers
from pipeline.store.writer import StoreWriter, waiting_rows

__all__ = [
    "Environment",
    "FeatureStore",
    "LayerSpec",
    "Part",
    "SideBySide",
    "Source",
    "StoreWriter",
    "earlier_headers",
    "is_store",
    "layer_names",
    "open_stores",
    "part_range",
    "waiting_rows",
]
