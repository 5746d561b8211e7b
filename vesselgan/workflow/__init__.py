"""Long pipelines of launch commands: one stage, the demo, the study."""
