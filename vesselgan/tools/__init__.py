"""Beside the pipeline: plan, doctor, status, benchmark."""
