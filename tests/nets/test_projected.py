"""The discriminator's heads and the views it is shown."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from addsr.errors import InputError, OptionError
from addsr.nets.projected import ProjectedHead, ProjectedHeads, SpectralConv1d
from addsr.nets.views import PLAIN, View, ViewSpec, draw_view, show


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_addsr_has_7_630_720_numbers_in_its_heads() -> None:
    assert 5 * sum(p.numel() for p in ProjectedHead(384, 384).parameters()) == 7_630_720
    with torch.no_grad():
        logits = ProjectedHeads((8, 12), 6, 4)([torch.randn(2, 8, 9), torch.randn(2, 12, 25)],
                                               torch.randn(2, 6))  # fmt: skip
    assert [tuple(q.shape) for q in logits] == [(2, 9), (2, 25)]


def test_weights_have_spectral_norm_one_after_enough_calls() -> None:
    torch.manual_seed(0)
    layer = SpectralConv1d(6, 10, 3)
    torch.nn.init.normal_(layer.weight, std=3.0)
    x = torch.randn(1, 6, 12)
    for _ in range(200):
        layer(x)
    matrix = layer.weight.detach().flatten(1).double()
    expected = layer.weight / torch.linalg.matrix_norm(matrix, 2)
    rolled = F.pad(x, (1, 1), mode="circular")
    torch.testing.assert_close(
        layer(x), F.conv1d(rolled, expected.float(), layer.bias), atol=1e-5, rtol=1e-4
    )


def test_the_norm_is_iterated_in_training_alone() -> None:
    layer, x = SpectralConv1d(6, 10, 3), torch.randn(1, 6, 12)
    torch.nn.init.normal_(layer.weight)
    before = layer.u.clone()
    layer.eval()(x)
    assert torch.equal(layer.u, before)
    layer.train()(x)
    assert not torch.equal(layer.u, before)


def test_two_calls_before_one_backward_are_allowed() -> None:
    head = ProjectedHead(8, 6, 4)
    features, c = torch.randn(2, 2, 8, 9), torch.randn(2, 6)
    (head(features[0], c).mean() - head(features[1], c).mean()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in head.parameters())


def test_the_norm_takes_part_in_the_gradient() -> None:
    torch.manual_seed(0)
    layer, x = SpectralConv1d(4, 5, 3).eval(), torch.randn(1, 4, 8)
    layer(x).square().sum().backward()
    # a normalised weight does not care for its length, so nothing pulls along it
    along = (layer.weight.grad * layer.weight.detach()).sum()
    assert float(layer.weight.grad.abs().max()) > 0.1
    assert float(along.abs()) < 1e-4


def test_the_condition_decides_the_logits() -> None:
    torch.manual_seed(0)
    head = ProjectedHead(8, 6, 4).eval()
    features, c = torch.randn(1, 8, 9), torch.randn(2, 6)
    with torch.no_grad():
        torch.nn.init.zeros_(head.project.bias)
        a, b = head(features, c[:1]), head(features, c[1:])
        assert not torch.allclose(a, b)
        torch.testing.assert_close(head(features, c[:1] + c[1:]), a + b)  # an inner product


def test_heads_without_a_condition_do_without() -> None:
    head = ProjectedHead(8, 0)
    assert head(torch.randn(2, 8, 9)).shape == (2, 1, 9)
    with pytest.raises(InputError, match="give none"):
        head(torch.randn(2, 8, 9), torch.randn(2, 6))
    with pytest.raises(InputError, match="give a vector"):
        ProjectedHead(8, 6)(torch.randn(2, 8, 9))


def test_wrong_widths_and_counts_are_named() -> None:
    with pytest.raises(OptionError, match="width: 10"):
        ProjectedHead(10, 6)
    with pytest.raises(OptionError, match="widths"):
        ProjectedHeads((), 6)
    with pytest.raises(InputError, match="1 of them for 2 heads"):
        ProjectedHeads((8, 8), 0)([torch.randn(1, 8, 9)])
    with pytest.raises(InputError, match="too few tokens"):
        ProjectedHead(8, 0)(torch.randn(1, 8, 3))


# --- views -----------------------------------------------------------------------------------


def test_a_view_moves_by_whole_pixels_and_fills_with_grey() -> None:
    picture = torch.rand(2, 3, 6, 5)
    view = View(torch.tensor([[1, -2], [0, 0]]), torch.zeros(2, 2).long(), (0, 0), None)
    got = show(picture, view)
    expected = torch.full((3, 6, 5), 0.5)
    expected[:, 1:, :3] = picture[0, :, :5, 2:]
    assert torch.equal(got[0], expected)
    assert torch.equal(got[1], picture[1])


def test_a_hole_is_filled_around_its_middle_and_cut_off_at_the_rim() -> None:
    picture = torch.rand(2, 3, 8, 8)
    view = View(torch.zeros(2, 2).long(), torch.tensor([[3, 4], [0, 8]]), (3, 2), None)
    got = show(picture, view)
    expected = picture.clone()
    expected[0, :, 2:5, 3:5] = 0.5
    expected[1, :, 0:2, 7:8] = 0.5
    assert torch.equal(got, expected)


def test_draws_stay_in_their_bounds_and_reach_them() -> None:
    picture, spec, dices = torch.rand(64, 3, 40, 32), ViewSpec(crop_px=16), dice()
    views = [draw_view(picture, spec, dices) for _ in range(40)]
    moves = torch.cat([v.move for v in views])
    assert moves.amin(0).tolist() == [-5, -4] and moves.amax(0).tolist() == [5, 4]
    holes = torch.cat([v.hole for v in views])
    assert views[0].hole_px == (8, 6)
    assert holes.amin(0).tolist() == [0, 0] and holes.amax(0).tolist() == [40, 32]
    crops = [v.crop for v in views if v.crop]
    assert 10 <= len(crops) <= 30
    assert all(0 <= top <= 24 and 0 <= left <= 16 and side == 16 for top, left, side in crops)
    assert len({crop[0] for crop in crops}) > 5


def test_narrow_pictures_are_never_cut_and_plain_views_change_nothing() -> None:
    picture = torch.rand(1, 3, 16, 16)
    spec, dices = ViewSpec(crop_px=16, crop_share=1.0), dice()
    assert all(draw_view(picture, spec, dices).crop is None for _ in range(5))
    assert torch.equal(show(picture, draw_view(picture, PLAIN, dices)), picture)
    wide = torch.rand(1, 3, 20, 20)
    assert show(wide, draw_view(wide, spec, dices)).shape == (1, 3, 16, 16)


def test_one_seed_gives_one_view_and_gradients_pass() -> None:
    picture = torch.rand(2, 3, 24, 24, requires_grad=True)
    a, b, c = (show(picture, draw_view(picture, ViewSpec(), dice(s))) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    a.sum().backward()
    assert set(picture.grad.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("field", [{"shift": -0.1}, {"hole": 1.5}, {"crop_px": 0}])
def test_impossible_views_are_refused(field: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=next(iter(field))):
        ViewSpec(**field)
