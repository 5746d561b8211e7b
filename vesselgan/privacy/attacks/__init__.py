"""The statistics of privacy audits: arrays in, numbers out."""
