"""Whether synthetic patches are like the page's real ones: what `generate` logs of its set, of fewer patches."""

from vesselgan.formats.shards import ShardSet
from vesselgan.report.samples import Gallery
from vesselgan.synthesis.comparison import Summary

NUM_COMPARED = 100
"""Of a set, all over it."""


def summarise(shards: ShardSet, label_threshold: float | None) -> Summary:
    return Summary.of(shards, label_threshold=label_threshold, max_patches=NUM_COMPARED)


def warnings(gallery: Gallery, real: Gallery | None) -> list[str]:
    """At most one text: that no label has a vessel, and what differs from the real patches by far."""
    synthetic = summarise(gallery.shards, gallery.label_threshold)
    texts = []
    if synthetic.num_empty == synthetic.num_patches:
        texts.append(f"all of the {synthetic.num_patches} labels compared are empty")
    if real is not None and (far := synthetic.differences(summarise(real.shards, None))):
        texts.append(f"not like the real patches: {', '.join(far)}")
    at = f" (label threshold {gallery.threshold_text})"
    return [f"{gallery.title}, synthetic patches{at}: {'; '.join(texts)}."] if texts else []
