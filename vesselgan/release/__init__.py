"""What may leave: a folder of synthetic pairs, their generator, cards and checksums, behind the audit's verdict."""
