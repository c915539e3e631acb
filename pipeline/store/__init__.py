"""The feature store: one HDF5 file of features, ids, labels and status that is never wrong without saying so.

layout.py    format 1: header, columns, where each byte lies; the only module that imports h5py
rows.py      rows of one file at the level of bytes, with their checksums
origins.py   which rows of earlier files may be kept
writer.py    `StoreWriter`: crash-safe, resumable, incremental
reader.py    `FeatureStore`: one file, or a folder of parts
parts.py     which ranges make one store
dataset.py   rows as a PyTorch dataset
"""

from pipeline.store.layout import LayerSpec, Part
from pipeline.store.origins import Source
from pipeline.store.parts import part_range
from pipeline.store.reader import FeatureStore, is_store
from pipeline.store.writer import StoreWriter

__all__ = ["FeatureStore", "LayerSpec", "Part", "Source", "StoreWriter", "is_store", "part_range"]
