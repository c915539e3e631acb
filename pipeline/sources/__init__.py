"""The kinds of sources, one file a kind; `pipeline.manifest.read_manifest` chooses among them."""
