"""Settings: dataclass schema, composition with Hydra, and the DeepSpeed JSON files."""
