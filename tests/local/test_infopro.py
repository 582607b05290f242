"""InfoPro: an auxiliary loss of reconstruction and classification."""

import math
import statistics
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ppll_cli.data.augment import normalise
from ppll_cli.errors import ConfigError
from ppll_cli.leaves.values import ValueSpec, empty
from ppll_cli.local.infopro import ContrastiveCriterion, Decoder, InfoPro, Loss
from ppll_cli.local.method import Site
from ppll_cli.models.unit import IMAGE, ImageSpec
from ppll_cli.tasks.classification import LABEL
from tests.local.conftest import BATCH, CLASSES, TokenSpec, assert_trained, batch_at
from tests.local.infopro_sites import COLOUR, LOSSES, built, decoding, sites
from tests.other_task import OtherTask


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("weights", "convolutions"),
    [(None, 1), (None, 3), ([0.5, 2, 0, 0], 1), ([3, 0, 0, 0], 1), ([0, 2, 0, 0], 1)],
)
def test_everything_is_trained(
    site: Site, loss: Loss, weights: list[float] | None, convolutions: int
) -> None:
    torch.manual_seed(0)  # with some other seeds, a ReLU could zero a whole layer
    method = InfoPro(loss=loss, weights=weights, convolutions=convolutions)
    assert_trained(method.criterion(site), batch_at(site))


@pytest.mark.parametrize("loss", LOSSES)
def test_neither_feature_nor_image_is_changed_in_place(site: Site, loss: Loss) -> None:
    values = batch_at(site)
    before = {name: tensor.detach().clone() for name, tensor in values.items()}
    InfoPro(loss=loss).criterion(site)(values)
    assert all(torch.equal(values[name], before[name]) for name in before)


def layers(network: nn.Module) -> list[tuple[int, ...]]:
    """Return the shapes of the weights. For convolutions, the stride is added."""
    return [
        (*m.weight.shape, *(m.stride[:1] if isinstance(m, nn.Conv2d) else ()))
        for m in network.modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    ]


@pytest.mark.parametrize(
    ("channels", "convolutions", "expected"),
    [
        (16, 1, [(32, 16, 3, 3, 2)]),
        (32, 1, [(64, 32, 3, 3, 2)]),
        (64, 1, [(64, 64, 3, 3, 1)]),
        (16, 3, [(32, 16, 3, 3, 2), (64, 32, 3, 3, 2), (64, 64, 3, 3, 1)]),
        (48, 1, [(64, 48, 3, 3, 2)]),
        (128, 2, [(64, 128, 3, 3, 1), (64, 64, 3, 3, 1)]),
    ],
)
def test_layers_of_the_classifier(
    channels: int, convolutions: int, expected: list[tuple[int, ...]]
) -> None:
    (site,) = sites(2, (channels, 4, 4))
    width = expected[-1][0]
    softmax = built(InfoPro(convolutions=convolutions), site)
    assert layers(softmax.head) == [*expected, (128, width), (CLASSES, 128)]
    contrastive = built(InfoPro(loss="contrastive", convolutions=convolutions), site)
    assert isinstance(contrastive, ContrastiveCriterion)
    assert layers(contrastive.head) == [*expected, (128, width), (128, 128)]
    assert layers(contrastive.probe) == [(CLASSES, 128)]


@pytest.mark.parametrize("loss", LOSSES)
def test_convolutions_are_drawn_by_hes_rule(loss: Loss) -> None:
    """As in the paper's code, the standard deviation is sqrt(2 / fan out)."""
    (site,) = sites(2, (32, 4, 4))
    criterion = built(InfoPro(loss=loss), site)
    found = [layer for layer in criterion.modules() if isinstance(layer, nn.Conv2d)]
    assert len(found) == 3
    for layer in found:
        fan_out = layer.out_channels * layer.kernel_size[0] ** 2
        assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)
        assert layer.weight.mean().item() == pytest.approx(0, abs=0.05)


def test_widths_are_options() -> None:
    (site,) = sites(2)
    criterion, decoder = decoding(InfoPro(width=10, hidden=7, decoder_width=5), site)
    assert layers(criterion.head) == [(10, 8, 3, 3, 2), (7, 10), (CLASSES, 7)]
    assert layers(decoder) == [(5, 8, 3, 3, 1), (3, 5, 3, 3, 1)]
    contrastive = built(InfoPro(loss="contrastive", width=10, hidden=7), site)
    assert layers(contrastive.head) == [(10, 8, 3, 3, 2), (7, 10), (7, 7)]


def weights(method: InfoPro, modules: int) -> list[tuple[float, float]]:
    return [method.weights_at(site) for site in sites(modules)]


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        (2, [(5, 1)]),
        (3, [(6, 0), (1, 2)]),
        (4, [(6, 0), (3.5, 1), (1, 2)]),
        (5, [(6, 0), (13 / 3, 2 / 3), (8 / 3, 4 / 3), (1, 2)]),
        (8, [(5 - n * 5 / 6, n / 3) for n in range(7)]),
        (16, [(5 - n * 4.8 / 14, 0.05 + n * 0.45 / 14) for n in range(15)]),
    ],
)
def test_weights_change_linearly(modules: int, expected: list[tuple[float, float]]) -> None:
    assert weights(InfoPro(), modules) == [pytest.approx(pair) for pair in expected]


@pytest.mark.parametrize(
    ("modules", "like"), [(5, 4), (6, 4), (7, 8), (11, 8), (12, 8), (13, 16), (40, 16)]
)
def test_other_numbers_of_modules_use_the_nearest_entrys_weights(modules: int, like: int) -> None:
    found, expected = weights(InfoPro(), modules), weights(InfoPro(), like)
    assert (found[0], found[-1]) == (expected[0], expected[-1])


def test_weights_can_be_given() -> None:
    method = InfoPro(weights=[1, 2, 3, 8])
    assert weights(method, 4) == [(1, 2), (2, 5), (3, 8)]
    assert weights(method, 2) == [(1, 2)]


@pytest.mark.parametrize("modules", range(2, 20))
def test_default_weights_train_every_module(modules: int) -> None:
    assert all(any(pair) for pair in weights(InfoPro(), modules))


@pytest.mark.parametrize("loss", LOSSES)
def test_only_modules_with_a_decoder_read_the_image(loss: Loss) -> None:
    found = [built(InfoPro(loss=loss), site) for site in sites(8)]
    assert [IMAGE in criterion.reads for criterion in found] == [True] * 6 + [False]
    assert [criterion.decoder is not None for criterion in found] == [True] * 6 + [False]
    assert found[-1].reads == ("x", LABEL)
    assert not [name for name in found[0].state_dict() if "mean" in name.split(".")]


@pytest.mark.parametrize(("l1", "l2"), [(0.5, 2.0), (0.0, 2.0), (3.0, 0.0)])
def test_the_loss_is_the_weighted_sum(site: Site, l1: float, l2: float) -> None:
    values = batch_at(site)
    feature, image = values[site.feature], values[IMAGE]
    criterion = built(InfoPro(weights=[l1, l2, 0, 0]), site)
    loss, prediction = criterion(values)
    expected = (l2 or 1.0) * site.task.loss(prediction, values)
    if criterion.decoder is not None:
        expected = expected + l1 * criterion.decoder(feature, image)
    torch.testing.assert_close(loss, expected)


def gradient(output: Tensor, feature: Tensor) -> Tensor | None:
    (found,) = torch.autograd.grad(output, feature, allow_unused=True)
    return found


@pytest.mark.parametrize("loss", LOSSES)
def test_reconstruction_alone_trains_the_module_if_l2_is_zero(site: Site, loss: Loss) -> None:
    values = batch_at(site)
    feature = values[site.feature]
    criterion, decoder = decoding(InfoPro(loss=loss, weights=[2, 0, 0, 0]), site)
    found = gradient(criterion(values)[0], feature)
    expected = gradient(2 * decoder(feature, values[IMAGE]), feature)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_only_softmax_trains_the_module_by_its_prediction(site: Site, loss: Loss) -> None:
    values = batch_at(site)
    _, prediction = InfoPro(loss=loss).criterion(site)(values)
    assert prediction.requires_grad
    found = gradient(prediction.square().sum(), values[site.feature])
    assert (found is None) == (loss == "contrastive")


@pytest.mark.parametrize("image", [COLOUR, replace(COLOUR, mean=(0.3,), std=(0.2,))])
def test_the_decoders_targets_are_the_original_pixels(image: ImageSpec) -> None:
    """All byte values are tested, in every channel."""
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (image.mean, image.std))
    target = Decoder(8, image, 12).pixels(normalise(pixels, mean, std))
    torch.testing.assert_close(target, pixels / 255, atol=1e-6, rtol=0)


def test_pixels_outside_the_range_are_clamped() -> None:
    """A user's own data set may pad images with values below black or above white."""
    image = torch.tensor([-0.6, -0.5, 0.0, 1.5, 1.6]).view(1, 1, 1, 5)
    pixels = Decoder(8, ImageSpec(1, 1, 5, (0.25,), (0.5,)), 12).pixels(image)
    assert pixels.flatten().tolist() == [0, 0, 0.25, 1, 1]


def test_data_without_images_are_refused(site: Site) -> None:
    text = replace(site, input_spec=TokenSpec())
    with pytest.raises(ConfigError, match=r"^local=infopro: reconstructs images, but the data set"):
        InfoPro().criterion(text)
    InfoPro(weights=[0, 1, 0, 1]).criterion(text)  # what the message recommends


def test_the_decoders_loss_is_cross_entropy_with_the_pixels(site: Site) -> None:
    """The decoder returns a logit of 1 for each pixel."""
    image = batch_at(site)[IMAGE]
    assert isinstance(site.input_spec, ImageSpec)
    decoder = Decoder(8, site.input_spec, 12)
    *_, last = decoder.network.children()
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    nn.init.zeros_(last.weight)
    nn.init.ones_(last.bias)
    loss = decoder(torch.randn(BATCH, *site.spec.shape), image)
    grey = 1 / (1 + math.exp(-1))
    pixels = (image.double() * 0.5 + 0.25).flatten().tolist()
    expected = [-p * math.log(grey) - (1 - p) * math.log(1 - grey) for p in pixels]
    assert loss.item() == pytest.approx(statistics.fmean(expected), rel=1e-5)


def test_features_are_enlarged_with_aligned_corners() -> None:
    decoder = Decoder(1, ImageSpec(1, 5, 9), 1)
    decoder.network = nn.Sequential(nn.Identity())
    x = torch.tensor([[0.0, 4.0], [8.0, 12.0]])[None, None]
    seen: list[Tensor] = []
    decoder.network.register_forward_hook(lambda _module, inputs, _output: seen.extend(inputs))
    decoder(x, torch.zeros(1, 1, 5, 9))
    expected = [[2.0 * row + 0.5 * column for column in range(9)] for row in range(5)]
    torch.testing.assert_close(seen[0][0, 0], torch.tensor(expected))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("given", [None, [0, 1, 0, 0], [1, 0, 0, 0]])
def test_the_loss_accepts_one_sample_on_the_meta_device(
    site: Site, loss: Loss, given: list[float] | None
) -> None:
    with torch.device("meta"):
        criterion = InfoPro(loss=loss, weights=given).criterion(site).eval()
    image = ValueSpec((1, 8, 8), torch.float32)
    specs = {site.feature: site.spec, IMAGE: image, **site.task.targets}
    value, prediction = criterion({name: empty(specs[name]) for name in criterion.reads})
    assert value.shape == ()
    assert prediction.shape == (1, CLASSES)
    assert value.is_meta


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "local.loss=hinge: must be 'softmax' or 'contrastive'"),
        ({"width": 0}, "local.width=0: must be greater than or equal to 1"),
        ({"hidden": -1}, "local.hidden=-1: must be greater than or equal to 1"),
        ({"convolutions": 0}, "local.convolutions=0: must be greater than or equal to 1"),
        ({"decoder_width": 0}, "local.decoder_width=0: must be greater than or equal to 1"),
        ({"temperature": 0.0}, "local.temperature=0.0: must be greater than 0"),
        ({"temperature": math.inf}, "local.temperature=inf: must be a finite number"),
        ({"temperature": math.nan}, "local.temperature=nan: must be a finite number"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        InfoPro(**options)  # type: ignore[arg-type]
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([], "must be l1 and l2 of the first auxiliary network, then of the last, or null"),
        ([1, 1, 1], "must be l1 and l2 of the first auxiliary network, then of the last, or null"),
        ([1, 1, -0.5, 1], "must be greater than or equal to 0"),
        ([1, math.inf, 1, 1], "must be a finite number"),
        ([math.nan, 1, 1, 1], "must be a finite number"),
    ],
)
def test_invalid_weights_are_refused(given: list[float], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        InfoPro(weights=given)
    assert str(caught.value) == f"local.weights={given}: {problem}"


@pytest.mark.parametrize(("given", "module"), [([0, 0, 1, 1], 0), ([1, 1, 0, 0], 2)])
def test_a_module_that_nothing_would_train_is_refused(given: list[float], module: int) -> None:
    method, ends = InfoPro(weights=given), sites(4)
    with pytest.raises(ConfigError) as caught:
        method.criterion(ends.pop(module))
    assert str(caught.value) == (
        f"local.weights={given}: l1 and l2 are both 0 at module {module}, so nothing would train "
        "it; "
        "make l1 or l2 greater than 0 for the first and for the last auxiliary network"
    )
    for site in ends:
        method.criterion(site)


@pytest.mark.parametrize("shape", [(8,)])
def test_other_tasks_are_refused(site: Site) -> None:
    with pytest.raises(ConfigError) as caught:
        InfoPro().criterion(replace(site, task=OtherTask()))
    assert str(caught.value) == (
        "local=infopro: is for classification; choose a data set with class labels"
    )
