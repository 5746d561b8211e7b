"""Pages: what stands between backticks is code, and nothing else is markup."""

from vesselgan.viz.pages import code


def test_text_between_backticks_is_code():
    assert code("run `a <b>` or `c`.") == "run <code>a &lt;b&gt;</code> or <code>c</code>."


def test_a_single_backtick_stays():
    assert code("a ` <i>") == "a ` &lt;i&gt;"
