"""Studies: plain values, the keys of their cells as recorded, and the question that each answers."""

from collections.abc import Iterator

import pytest

from ablations import Axes, Study, load_study, study_names
from ablations.mechanisms import bra, mechanism, swin, vanilla
from ablations.study import cell_key
from attention_zoo import names
from runners.cells.plan import estimate_seconds, make_plan
from runners.dense.data import opened

KEYS = {
    "attention": """
        6291a8d1e348325c ef9e1a90435db156 70013866d672da58
    """,
    "bccd": """
        ab7d4f17d41a8218 04fb0abfae1278eb bc0bd54f32cf301e
    """,
    "camvid": """
        73db6191faffc12d fb19efebd776b7e5 46a978dafe6ee404 d3dcd9e0557b92c3 3df3bf519c2b6848 ee0d433492afad75
        16c66c1c89f32655 cf154435611f9cd2
    """,
    "coco128": """
        8729bc08a002b8d2
    """,
    "dense_backbones": """
        bd1f6ef141ff86ca 4f2223ef3f2a5f0b af63637dff92e18e 910a41e60e46fc5c 729835ee87d782c4 775b20e635310f0c
        c05089d6b2c1ec71 c877d4719cd908fe faba538dc4bedb91 d52ba5c8fa237fb6 2974b15958fa5292 3c53895af175b3a8
        0a1aea23b4a32e65 1510d5ffeac6415f d8ff695212cacb03 fdfe80ab5e5d69d1 6d98208b71093412 ec17187c01bb25a6
        6d4cc18403f286f4 4795d15bb24c4c77 012ff02eced44172 db429eed49fe7dfa 27ffb1f1808abb5f 2b67982a6f147cc6
        1a6b6d44ca886c1d a50be822cee90af5
    """,
    "dense_costs": """
        0f7f2d6f235c82f9 c1d59d3e79b238c3 467f2b0649f4d34d 81653504cd4e6090 e76f6cf1eda7aa51 54823836c8107c96
        90cb510889443018 ed2ff81c06e7974b 9ec6f9555c831b46 5c5d32c1110e3247 b0b59466abe239d6 2ea9b8eca4f96d1d
        3e662297b96383d7 671cd5e5de0b6798 f628b509f15e30a4 24d8e569f92c25ed bd62cbecc038ce84 0e707be0ee07025c
        3d5d4c4a9dd8cbd4 9c036ad86845ff3c 10cbf0d25913ad54 7292e013e35c16ed dae982408491e16c 545007103118e6c9
        6b289a845400f4c5 b1ddea88d2baee99 694bd39b87f05dca a55250238e19139b 0e8f95086405fd19 4a4770011f5a10ef
        e432dfb64d9c2bdd 4d194720882616e0 011a96e29c58c0f8 92eef8efbed8305b 0a186e0865b1426d ffecd99b40d808b4
        70e7ccb54770828b 23d38c3a2501ecc8 9827758c186c55d2 e39cf1d6b84eb68a ced066e62e15240c 7cae9637b4ca1948
        810753f90525e4e4 e126694e768085a4 fe857892b96f2b94 33bc6383a190d85d 3ac53be51711a72b 722a04e71118244b
        e2693a96e716246f e9ea9925ea5629c6 cc74cf1f628d2c97 896d076e6ff3a4b0
    """,
    "digit_vote_jitter": """
        c4cdd204eabbf55e aafa50834a8b3036 e4899c25361c4bb8 abda4f2e42292cbe 5a8fcbf993f104ae
    """,
    "region_size": """
        e8300dd56fa80967 696d7a16d797c74d e2a25b867cd4c6ac 64e08a7430b0a33c 96383e842f1ded7b 5f8bcee6d891c0b3
        9202b5910be5187f 8dcaec5a796735ae
    """,
    "resolution": """
        6e0802ac23cc5e74 c26cbf3ae495cb7d efa882e28db6071c 8e2ed2195625a91e db2c73905aa50eb8 4e84444292b2047e
        28639d9bcc698d2c f1ea2dec8a504feb a7c40ff1efb592a9 3f3b8562eab3a30b 8f6a569bcbdd0ae8 4a86ef20b1089081
        fc046d91d2e2a564 520d3863c0e1694b ce35dd3382fe8e0b 2abba3eb9f94631a
    """,
    "topk": """
        bf563491c2b300af 238f8586653bcb11 c480ee22dcc56c1a 44136fa355b3678a fbe47f6d82b435a8 a61e75dcd6780103
        041c38bd30c75989 ed2fe62a63a6311f bee6c1bc018e1cf9 434c8bf4d3b1a45d 84a3cd7a5a165a07 683ce0c4cf2c3617
        2c157de11a38b3cf 9564fb728aa7f506 b08a521aed38348f
    """,
}
"""Keys of the cells of each study in the order in which they run: another key would measure the cell again."""


def keys(axes: tuple[Axes, ...]) -> list[str]:
    return [cell_key(cell) for cell in make_plan(axes).cells]


def settings(axes: tuple[Axes, ...]) -> list[dict[str, object]]:
    return [dict(cell.settings) for cell in make_plan(axes).cells]


def test_every_study_has_its_keys_recorded_here() -> None:
    assert study_names() == sorted(KEYS)


class ManyImages:
    """Stands for the files that some studies are of, which are not here: planning asks how many there are."""

    classes = ("one", "other")
    counts = True

    def __len__(self) -> int:
        return 1000

    def is_empty(self, index: int) -> bool:
        return False

    def notes(self, *, learnt: bool, keep_empty: bool = False) -> list[str]:
        return []

    def identity(self) -> tuple[bytes, ...]:
        return ()


@pytest.fixture
def files_of_studies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(opened, "_open", lambda spec, task: (ManyImages(), ManyImages()))
    monkeypatch.setattr(opened, "_warnings", lambda *_: ())
    yield
    opened.open_dense.cache_clear()


@pytest.mark.usefixtures("files_of_studies")
@pytest.mark.parametrize("name", study_names())
def test_a_study_plans_the_recorded_cells(name: str) -> None:
    study = load_study(name)
    assert study.name == name
    assert study.question.endswith("?")
    assert study.expectation and not study.expectation.startswith("Expect")
    assert keys(study.axes) == KEYS[name].split()
    assert all(estimate_seconds(cell, study.measures) > 0 for cell in make_plan(study.axes).cells)


def test_values_are_plain() -> None:
    study = Study("mine", bra(topk=[1, "1-4-8-full"], clip_topk=True) + swin(window=(4, 6)), seeds=2, steps=[5, 6])
    assert settings(study.axes)[::4] == [
        {"clip_topk": True, "topk": 1},
        {"clip_topk": True, "topk": "1-4-8-full"},
        {"window": "4x6"},
    ]
    cells = make_plan(study.axes).cells
    assert [(cell.steps, cell.seed) for cell in cells[:4]] == [(5, 0), (5, 1), (6, 0), (6, 1)]


def test_seeds_resolutions_and_text_mean_the_same_however_they_are_given() -> None:
    plain = Study("a", mechanism("bra"), seeds=[0, 1, 2], resolution=[64, (96, 128)], epochs=None)
    words = Study("b", Axes(seeds=(0, 1, 2), resolution=((64, 64), (96, 128))))
    assert keys(plain.axes) == keys(words.axes)
    assert keys(Study("c", bra(resolution=(96, 128))).axes) == keys(Study("d", bra(), resolution="96x128").axes)


def test_any_mechanism_can_be_named_without_a_list() -> None:
    import ablations.mechanisms

    for name in names():
        assert getattr(ablations.mechanisms, name)(seeds=[5]) == Axes(attn=(name,), seeds=(5,))
    assert mechanism("package.module:Class").attn == ("package.module:Class",)
    with pytest.raises(AttributeError):
        ablations.mechanisms._private  # noqa: B018


def test_a_sum_keeps_its_order() -> None:
    one, two, three = bra(), swin(), vanilla()
    assert one + two + three == (one, two, three) == one + (two + three)


def test_a_study_in_the_words_of_before_still_plans() -> None:
    study = Study(
        name="old",
        question="Does it?",
        expectation="It does.",
        axes=(Axes(settings=(("topk", ("1", "4")),), layout=("small",)), Axes(attn=("vanilla",))),
        measures=("flops",),
        slurm=(("time", "2:00:00"),),
    )
    assert settings(study.axes) == [{"topk": 1}, {}, {}]
    assert (study.question, study.measures, study.slurm) == ("Does it?", ("flops",), (("time", "2:00:00"),))


REFUSED = {
    "seeds": (-1, ["seeds=[-1]", "at least 0"]),
    "resolution": (10, ["resolution=[10]", "32 to 16384"]),
    "precision": ("fp8", ["precision=['fp8']", "fp32, tf32, amp-bf16"]),
    "steps": (0.5, ["steps=[0.5]", "'0.5'", "integer"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_value_that_is_not_allowed_is_one_error(name: str) -> None:
    value, parts = REFUSED[name]
    with pytest.raises(ValueError) as error:
        Study("bad", bra(), **{name: [value]})
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_an_empty_axis_and_a_switch_that_is_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"topk=\[\]"):
        bra(topk=[])
    with pytest.raises(ValueError, match="compile='yes'"):
        bra(compile="yes")
