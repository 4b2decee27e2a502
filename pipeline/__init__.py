"""Audio to shards: manifest, decode, fbank, WebDataset tars, index and data-set card."""
