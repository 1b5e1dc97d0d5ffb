"""Progress of several stages as one fraction."""

from shareatt_export.system.progress import Stages, counted


def test_stages_make_one_fraction():
    seen = []
    stages = Stages(lambda what, fraction: seen.append((what, fraction)), {"reading": 1, "writing": 3})
    stages("reading")(1.0)
    advance = counted(stages("writing"), 200)
    advance(50)
    advance(150)
    assert seen == [("reading", 0), ("reading", 0.25), ("writing", 0.25), ("writing", 0.4375), ("writing", 1.0)]
