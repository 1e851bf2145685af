"""Methods as data against plain loops in float64: context rules, orders, the guided update, and what is kept."""

import copy

import pytest
import torch
from torch import nn

from fairy.engines.eager import EagerBackend
from fairy.export.checkpoint import Checkpoint
from fairy.export.graphs import self_attention_layers, unet_spec
from fairy.runtime import InputError
from fairy.runtime.bank.units import SourceBank
from fairy.runtime.denoise.guidance import branch_text, make_guidance
from fairy.runtime.denoise.sampler import make_schedule
from fairy.runtime.methods import METHODS, PIX2VIDEO, Method, find_method
from fairy.runtime.methods.method import Update
from fairy.runtime.methods.method_graphs import method_graphs
from fairy.runtime.methods.pix2video import pull_to_previous, update_weight
from fairy.runtime.plan.order import Order, most_kept
from tests.conftest import TEXT_CHANNELS, make_unet
from tests.runtime.methods.reference import edit_frame_after_frame
from tests.runtime.methods.units import Units

DDIM = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
DDIM |= {"clip_sample": False, "set_alpha_to_one": False, "prediction_type": "epsilon", "steps_offset": 1}
HEIGHT, WIDTH = 6, 10
DELTA, SCALE = 100.0, 7.5

PREVIOUS_ONLY = Method(
    "previous_only", lambda i, _: (i - 1,) if i else (), False, "decoder", "first", ("wavefront",), pull_to_previous
)
WINDOW = Method(
    "window",
    lambda i, _: tuple(range(max(0, i - 2), i)),
    True,
    "decoder",
    "first",
    ("wavefront", "step-major"),
    pull_to_previous,
)


def depth_unet(seed: int = 4) -> nn.Module:
    """Two levels with attention in both directions, five input channels, float64."""
    torch.manual_seed(seed)
    return make_unet(
        seed=seed,
        in_channels=5,
        layers_per_block=1,
        block_out_channels=(16, 32),
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    ).double()


class Case:
    """Random inputs for N frames, and both ways to edit them."""

    def __init__(self, num_frames: int, steps: int) -> None:
        generator = torch.Generator().manual_seed(num_frames * 100 + steps)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.num_frames, self.steps = num_frames, steps
        self.noise, self.depth = draw(num_frames, 4, HEIGHT, WIDTH), draw(num_frames, 1, HEIGHT, WIDTH)
        self.texts = draw(7, TEXT_CHANNELS), draw(7, TEXT_CHANNELS)
        self.update_steps = (steps + 1) // 2

    def plainly(self, unet: nn.Module, method: Method) -> torch.Tensor:
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler(**DDIM)
        scheduler.set_timesteps(self.steps)
        return edit_frame_after_frame(
            copy.deepcopy(unet),
            scheduler,
            lambda i: method.sources(i, (0,)),
            own=method.own,
            noise=self.noise,
            conditions=self.depth,
            texts=self.texts,
            scale=SCALE,
            delta=DELTA if method.after_step else 0.0,
            update_steps=self.update_steps,
        )

    def in_order(
        self, unet: nn.Module, method: Method, order: Order, at_once: int = 64
    ) -> tuple[torch.Tensor, SourceBank, list[int]]:
        """Latents, the bank, and how many units each call of the network had."""
        widths = {len(read) for read in method.all_sources(self.num_frames, (0,))}
        backend = _backend(unet)
        plain = unet_spec("unet", self_attention_layers(unet), in_channels=5, out_channels=4, text_channels=32)
        graphs = {graph.name: graph for graph in method_graphs(plain, method, method.layers, widths).values()}
        guidance = make_guidance(SCALE, 1.0)
        units = Units(
            method,
            make_schedule("ddim", DDIM, self.steps),
            guidance,
            Update(update_weight(DELTA, self.noise[0].numel()), self.update_steps),
            branch_text(guidance, *self.texts),
            graphs,
            lambda name, precision: backend.engine(graphs[name], precision),
            lambda unit: pytest.fail("DDIM draws no noise"),
        )
        latents, bank = units.denoise(self.noise, self.depth, order, at_once)
        return latents, bank, units.calls


def _backend(unet: nn.Module) -> EagerBackend:
    networks = Checkpoint("random", unet, nn.Identity(), nn.Identity(), None, {}, {})
    return EagerBackend(networks, torch.device("cpu"), torch.float64)


@pytest.mark.parametrize(
    ("method", "num_frames", "steps", "order", "at_once"),
    [
        (PIX2VIDEO, 5, 4, "wavefront", 64),
        (PIX2VIDEO, 5, 4, "wavefront", 2),
        (PIX2VIDEO, 5, 4, "step-major", 64),
        (PIX2VIDEO, 3, 6, "wavefront", 64),
        (PIX2VIDEO, 1, 3, "wavefront", 64),
        (PIX2VIDEO, 2, 1, "wavefront", 64),
        (PREVIOUS_ONLY, 4, 3, "wavefront", 3),
        (WINDOW, 5, 3, "wavefront", 64),
        (WINDOW, 5, 3, "step-major", 64),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_every_order_gives_what_frame_after_frame_gives(
    method: Method, num_frames: int, steps: int, order: Order, at_once: int
) -> None:
    unet, case = depth_unet(), Case(num_frames, steps)
    with torch.no_grad():
        expected = case.plainly(unet, method)
        found, bank, _ = case.in_order(unet, method, order, at_once)
    assert (found - expected).abs().max() <= 1e-10
    assert len(bank) == 0, "the bank keeps what nobody will read"


def test_a_wave_is_one_call_for_the_first_frame_and_one_for_all_others() -> None:
    with torch.no_grad():
        _, _, calls = Case(6, 4).in_order(depth_unet(), PIX2VIDEO, "wavefront")
    assert sum(calls) == 6 * 4
    assert len(calls) == 4 + (6 - 1 + 4 - 1)
    assert max(calls) == 4


@pytest.mark.parametrize(("method", "order", "at_once"), [(PIX2VIDEO, "wavefront", 2), (WINDOW, "step-major", 1)])
def test_what_is_kept_is_what_was_planned(method: Method, order: Order, at_once: int) -> None:
    """The largest bank, without the batch at hand and its copies, in units of one frame's keys and values."""
    case, unet = Case(7, 4), depth_unet()
    with torch.no_grad():
        _, bank, _ = case.in_order(unet, method, order, at_once)
    decoder = [layer for layer in self_attention_layers(unet) if layer.name.startswith("up_blocks.")]
    unit = sum(2 * 2 * 8 * layer.channels * (HEIGHT >> layer.level) * (WIDTH >> layer.level) for layer in decoder)
    kept, rest = divmod(bank.most_bytes, unit)
    assert rest == 0
    planned = most_kept(order, method.all_sources(7, (0,)), 4, at_once)
    assert kept <= planned <= kept + at_once * 3


def test_the_update_is_the_gradient_of_the_papers_loss_and_changes_the_result() -> None:
    unet, case = depth_unet(), Case(3, 4)
    off = Method("off", PIX2VIDEO.sources, False, "decoder", "first", ("wavefront",))
    with torch.no_grad():
        on, without = case.in_order(unet, PIX2VIDEO, "wavefront")[0], case.in_order(unet, off, "wavefront")[0]
    assert torch.equal(on[0], without[0])
    assert (on[1] - without[1]).abs().max() > 1e-3
    assert update_weight(100.0) == pytest.approx(0.01220703125)
    assert update_weight(100.0, 4 * 48 * 48) == pytest.approx(0.0217, abs=1e-4)


def test_methods_are_found_by_name() -> None:
    assert find_method("pix2video") is PIX2VIDEO is find_method(PIX2VIDEO)
    assert set(METHODS) == {"fairy", "pix2video", "per_frame"}
    with pytest.raises(InputError, match="'tokenflow' is not known; choose one of fairy"):
        find_method("tokenflow")


def test_context_rules() -> None:
    assert [PIX2VIDEO.sources(i, (0,)) for i in range(4)] == [(), (0, 0), (0, 1), (0, 2)]
    assert METHODS["fairy"].all_sources(3, (1,)) == [(1,), (1,), (1,)]
    assert METHODS["per_frame"].all_sources(2, ()) == [(), ()]
