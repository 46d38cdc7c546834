"""The planner's counts come from the model's own calls; what fits is said per format; clusters and errors are clear."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from anychip.config import load_config
from anychip.errors import ChipError, ConfigError, InputError
from anychip.plan.cluster import parse_cluster, read_cluster
from anychip.plan.collectives import Group, all_gather_s, all_to_all_s, levels_of
from anychip.plan.counts import cache_bytes, decode_flops
from anychip.plan.cut import CLASSES, Share, cut
from anychip.plan.fit import fit_formats
from anychip.plan.measured import chosen_rows
from anychip.plan.models import find_model, own_model
from anychip.plan.own import own_train_memory
from anychip.plan.work import Batch


@pytest.mark.parametrize(("name", "total", "active", "per_token", "bf16"), [
    ("v4-flash", 284.332, 13.270, 3514, 6880), ("v4-pro", 1572.997, 48.852, 5031, 9848)])
def test_parameters_and_cache_are_the_published_ones(name: str, total: float, active: float, per_token: float,
                                                     bf16: float) -> None:
    work = find_model(name).work(Batch(1, 1, 4096))
    assert work.num_parameters() / 1e9 == pytest.approx(total, rel=1e-5)
    assert work.num_active() / 1e9 == pytest.approx(active, rel=1e-4)
    assert cache_bytes(load_config(name)).per_token == pytest.approx(per_token, rel=1e-3)
    assert cache_bytes(load_config(name), "bf16").per_token == bf16


@pytest.mark.parametrize(("name", "total", "active", "bf16"), [
    ("deepseek-v3", 671.026, 36.626, 70272), ("deepseek-v3.2", 671.878, 37.477, 85888),
    ("glm-5.1", 743.911, 40.833, 109824), ("glm-5.2", 743.377, 40.298, 95232),
    ("Qwen3_30B_a3B", 30.532, 3.042, 98304), ("Qwen3-235B", 235.094, 21.568, 192512)])
def test_other_families_are_planned_from_their_own_code(name: str, total: float, active: float, bf16: int) -> None:
    model = find_model(name)
    work = model.work(Batch(2, 1, 4096))
    assert model.config is not None and model.cache("bf16").per_token == bf16
    assert work.num_parameters() / 1e9 == pytest.approx(total, rel=1e-5)
    assert work.num_active() / 1e9 == pytest.approx(active, rel=1e-4)
    for part in (work.parts[name] for name in work.layers):
        whole, split = cut(part, Share()), cut(part, Share(tensor=4))
        attention = whole.kind == CLASSES.index("attention")
        assert split.flops[attention] * 4 == pytest.approx(whole.flops[attention]) and attention.sum() == 1


# at 4K: the first context at which Pro's indexer selects (1,025 entries), as the published figure counts it
@pytest.mark.parametrize(("context", "flash", "pro"), [
    (4100, 31.2 / 148.6, 118.7 / 148.6), (131072, 41.8 / 275.5, 142.6 / 275.5), (1048575, 0.0997, 0.2646)])
def test_decode_flops_over_v32_are_the_published_ratios(context: int, flash: float, pro: float) -> None:
    batch = Batch(1, 1, context)
    longer = replace(load_config("deepseek-v3.2"), max_position_embeddings=2**20)
    before = decode_flops(own_model(longer, "deepseek-v3.2").work(batch)).fp8_equivalent
    ratios = [decode_flops(find_model(name).work(batch)).fp8_equivalent / before for name in ("v4-flash", "v4-pro")]
    assert ratios == pytest.approx([flash, pro], rel=0.005)


def test_training_flops_a_token_are_those_others_count() -> None:
    counted = (("deepseek-v3", 4096, 260.1), ("llama3-70b", 8192, 448.8), ("qwen3-235b-a22b", 4096, 148.0))
    for name, length, gflop in counted:
        work = find_model(name).work(Batch(1, length, training=True))
        flops = 3 * sum(cut(work.parts[part], Share()).total("flops") * n for part, n in work.count.items()) / length
        assert flops / 1e9 == pytest.approx(gflop, rel=0.01), name


def test_ranks_shares_add_up_to_the_whole() -> None:
    part = find_model("v4-flash").work(Batch(1, 4096, training=True)).parts["CSA"]
    whole = cut(part, Share())
    split = cut(part, Share(tensor=4, expert=64))
    experts = [i for i, name in enumerate(whole.names) if name.endswith("experts.w13")]
    assert split.weights[experts] * 64 == pytest.approx(whole.weights[experts], rel=1e-3)
    assert split.flops[experts] * 4 == pytest.approx(whole.flops[experts])
    attention = whole.names.index("layers.1.attn.wq_b.weight")
    assert split.flops[attention] * 4 == whole.flops[attention]


def test_flash_on_eight_910b4_of_32_gb_fits_in_four_bits_only() -> None:
    model, cluster = find_model("v4-flash"), parse_cluster("8x910b4_32g")
    fit_formats(model, cluster)
    begin = time.perf_counter()
    fits = {fit.serving.weights: fit for fit in fit_formats(model, cluster)}
    assert time.perf_counter() - begin < 1
    assert [name for name, fit in fits.items() if fit.fits] == ["fp4", "w4a8"]
    assert any("no fp4 matrix unit" in note for note in fits["fp4"].notes) and not fits["w4a8"].notes
    assert "take 16 devices" in fits["w8a8"].notes[0] and fits["w8a8"].free < -7e9
    assert fits["w4a8"].sequences[131072] > 0 == fits["w8a8"].sequences[4096]


def test_weights_of_the_release_are_the_published_160_gb() -> None:
    fits = {fit.serving.weights: fit for fit in fit_formats(find_model("v4-flash"), parse_cluster("1xgb300"))}
    held = fits["fp4"].parts["routed experts"] + fits["fp4"].parts["other weights"]
    assert held == pytest.approx(160e9, rel=0.03)


def test_memory_of_a_real_training_step_is_predicted() -> None:
    # measured: benchmarks.plan_cpu, peak of all tensors, torch 2.13
    for recompute, measured in ((False, 483.9e6), (True, 205.5e6)):
        predicted = own_train_memory(load_config("nano"), 4, 1024, recompute=recompute).peak
        assert predicted == pytest.approx(measured, rel=0.08)


def test_a_cluster_file_says_how_its_chips_are_joined(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('chip = "h100"\ncount = 32\n[[levels]]\nname = "node"\nsize = 4\ngb_per_s = 100\nlatency_us = 2\n'
                    '[[levels]]\nname = "fabric"\ngb_per_s = 10\nlatency_us = 8\n')
    cluster = read_cluster(path)
    assert [(level.name, level.size, level.bytes_per_s) for level in cluster.levels] == [
        ("node", 4, 1e11), ("fabric", 32, 1e10)]
    path.write_text('chip = "h100"\ncuont = 32\n[[levels]]\ngb_per_s = 0\nlatency_us = 8\n')
    with pytest.raises(InputError) as error:
        read_cluster(path)
    for words in ("cuont: no such field. Did you mean 'count'?", "count is missing", "levels[0].gb_per_s is 0"):
        assert words in str(error.value)


@pytest.mark.parametrize(("text", "error", "words"), [
    ("0xh100", InputError, "0 chips cannot run anything"), ("64xh999", ChipError, "Known:"),
    ("h100", InputError, "COUNTxCHIP"), ("64x910b4_32g", ChipError, "what joins more than 8 of them is not known")])
def test_impossible_clusters_are_refused_with_what_to_do(text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        parse_cluster(text)


def test_an_unknown_model_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'deepseek-v3'.*llama3-70b"):
        find_model("deepsek-v3")


def test_groups_cross_the_levels_of_the_cluster() -> None:
    cluster = parse_cluster("64xh100")
    assert [members for members, _, _ in levels_of(cluster, Group(16))] == [8, 2]
    assert [members for members, _, _ in levels_of(cluster, Group(8, 8))] == [8]  # one device of each node
    inside, across = all_gather_s(cluster, Group(8), 1e9), all_gather_s(cluster, Group(8, 8), 1e9)
    assert inside == pytest.approx(7 / 8 / 450, rel=0.05) and across == pytest.approx(7 / 8 / 50, rel=0.05)
    assert all_to_all_s(cluster, Group(64), 1e9, copies=8) < all_to_all_s(cluster, Group(64), 1e9)


def test_made_up_choices_are_earlier_rows_of_the_own_sequence() -> None:
    chosen = chosen_rows(sequences=2, tokens=32, rows=8, topk=3)
    assert (chosen[:3] == -1).all() and chosen[3].tolist() == [0, -1, -1]
    assert set(chosen[31].tolist()) < {4, 5, 6, 7} and chosen[16:19].max() == -1 and chosen[:16].max() <= 3
