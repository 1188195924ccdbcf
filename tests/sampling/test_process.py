"""How latent and noise mix."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ditmesh.errors import InvalidRequest
from ditmesh.sampling import Flow

flows = st.one_of(
    st.floats(0.01, 8).map(Flow.flux),
    st.builds(Flow.discrete, st.floats(0.05, 20), st.sampled_from([1.0, 1000.0])),
)
percents = st.floats(0, 1)


@given(flows)
def test_the_table_ascends_to_one(flow: Flow) -> None:
    """Trained sigmas are fp32, positive, ascending, and end at pure noise."""
    assert flow.table.dtype == torch.float32
    assert flow.sigma_min == flow.table[0] > 0
    assert flow.sigma_max == flow.table[-1]
    assert flow.sigma_max.item() == pytest.approx(1.0, abs=1e-6)
    assert (flow.table.diff() >= 0).all()


@given(flows, percents, percents)
def test_sigma_falls_as_sampling_goes_on(flow: Flow, first: float, second: float) -> None:
    """Later percentages have no higher sigma; the ends are noise and latent."""
    low, high = sorted((first, second))
    assert flow.sigma_of_percent(low) >= flow.sigma_of_percent(high)
    assert flow.sigma_of_percent(0.0) == 1.0
    assert flow.sigma_of_percent(1.0) == 0.0


@pytest.mark.parametrize(
    ("flow", "at_half"),
    [
        (Flow.flux(1.15), math.exp(1.15) / (math.exp(1.15) + 1)),
        (Flow.discrete(3.0), 0.75),
        (Flow.discrete(1.0), 0.5),
    ],
)
def test_the_shift_moves_half_time(flow: Flow, at_half: float) -> None:
    """Flux: sigma(1/2) = e^mu / (e^mu + 1). SD3: s / (s + 1). Table and formula agree."""
    assert flow.sigma_of_percent(0.5) == pytest.approx(at_half, rel=1e-6)
    assert flow.table[len(flow.table) // 2 - 1].item() == pytest.approx(at_half, rel=1e-6)


def test_the_model_is_told_the_shifted_time() -> None:
    """Flux gets sigma itself, SD3 sigma times its multiplier."""
    sigma = torch.tensor(0.25)
    assert Flow.flux().timestep(sigma) == 0.25
    assert Flow.discrete().timestep(sigma) == 250.0
    assert Flow.discrete(multiplier=1.0).timestep(sigma) == 0.25


@given(flows, st.floats(0.01, 0.99))
def test_log_snr_inverts(flow: Flow, sigma: float) -> None:
    """Lambda = log(alpha / sigma), and back."""
    at = torch.tensor(sigma)
    half_log_snr = flow.half_log_snr(at)
    torch.testing.assert_close(half_log_snr, (flow.alpha(at) / at).log(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(flow.sigma_of_half_log_snr(half_log_snr), at)


def test_scaling_mixes_and_unmixes() -> None:
    """At 1 all is noise, at 0 all latent; a latent that holds noise survives a pause."""
    noise, latent = torch.tensor([2.0, -1.0]), torch.tensor([5.0, 7.0])
    flow = Flow.flux()
    assert torch.equal(flow.noise_scaling(torch.tensor(1.0), noise, latent), noise)
    assert torch.equal(flow.noise_scaling(torch.tensor(0.0), noise, latent), latent)
    sigma = torch.tensor(0.25)
    noisy = flow.noise_scaling(sigma, noise, latent)
    assert torch.equal(noisy, torch.tensor([4.25, 5.0]))
    paused = flow.inverse_noise_scaling(sigma, noisy)
    taken_up = flow.noise_scaling(sigma, torch.zeros(2), paused)
    torch.testing.assert_close(taken_up, noisy)


@pytest.mark.parametrize("shift", [0.0, -1.0, math.inf, math.nan, 1e9])
def test_an_impossible_shift_is_refused(shift: float) -> None:
    """The error names the field."""
    with pytest.raises(InvalidRequest) as error:
        Flow.discrete(shift)
    assert error.value.field == "shift"


@pytest.mark.parametrize("multiplier", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_multiplier_is_refused(multiplier: float) -> None:
    """The error names the field."""
    with pytest.raises(InvalidRequest) as error:
        Flow.discrete(multiplier=multiplier)
    assert error.value.field == "multiplier"


def test_an_unknown_time_shift_is_refused() -> None:
    """The error names the field."""
    with pytest.raises(InvalidRequest) as error:
        Flow(1.0, "cosine", 1.0)  # type: ignore[arg-type]
    assert error.value.field == "time_shift"
