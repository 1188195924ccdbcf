"""The samplers by name. Adding one is a step function and a line in this table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ditmesh.sampling.samplers import ancestral, dpmpp, er_sde, multistep, runge_kutta, uni_pc
from ditmesh.sampling.solver import NoiseKind, Sampler, offset_first

_SLOPES_2 = {"slope_1": 1, "slope_2": 2}
_SLOPES_3 = {**_SLOPES_2, "slope_3": 3}
_UNI_PC = {"corrected": 1, "denoised_1": 1, "denoised_2": 2, "denoised_3": 3}

SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "euler": Sampler(runge_kutta.euler, coefficients=runge_kutta.euler_shares),
        "euler_ancestral": Sampler(ancestral.euler_ancestral, noise=NoiseKind.SEQUENTIAL),
        "heun": Sampler(runge_kutta.heun, evaluations=2),
        "dpm_2": Sampler(runge_kutta.dpm_2, evaluations=2),
        "dpm_2_ancestral": Sampler(
            ancestral.dpm_2_ancestral, noise=NoiseKind.SEQUENTIAL, evaluations=2
        ),
        "lms": Sampler(multistep.lms, coefficients=multistep.lms_coefficients, history=_SLOPES_3),
        "dpmpp_sde": Sampler(
            dpmpp.dpmpp_sde, grid=offset_first, noise=NoiseKind.BROWNIAN, evaluations=2
        ),
        "dpmpp_2m": Sampler(dpmpp.dpmpp_2m, history={"denoised_1": 1}),
        "dpmpp_2m_sde": Sampler(
            dpmpp.dpmpp_2m_sde,
            grid=offset_first,
            history={"denoised_1": 1},
            noise=NoiseKind.BROWNIAN,
        ),
        "dpmpp_3m_sde": Sampler(
            dpmpp.dpmpp_3m_sde,
            grid=offset_first,
            history={"denoised_1": 1, "denoised_2": 2},
            noise=NoiseKind.BROWNIAN,
        ),
        "lcm": Sampler(ancestral.lcm, noise=NoiseKind.SEQUENTIAL),
        "ipndm": Sampler(multistep.ipndm, history=_SLOPES_3),
        "deis": Sampler(
            multistep.deis, coefficients=multistep.deis_coefficients, history=_SLOPES_2
        ),
        "res_multistep": Sampler(multistep.res_multistep, history={"denoised_1": 1}),
        "er_sde": Sampler(
            er_sde.er_sde,
            grid=offset_first,
            coefficients=er_sde.coefficients,
            history={"denoised": 1, "derivative": 2},
            noise=NoiseKind.SEQUENTIAL,
        ),
        "ddim": Sampler(runge_kutta.euler, coefficients=runge_kutta.euler_shares),
        "uni_pc": Sampler(
            uni_pc.uni_pc,
            grid=uni_pc.grid,
            coefficients=uni_pc.bh1_coefficients,
            history=_UNI_PC,
            min_steps=2,
        ),
        "uni_pc_bh2": Sampler(
            uni_pc.uni_pc,
            grid=uni_pc.grid,
            coefficients=uni_pc.bh2_coefficients,
            history=_UNI_PC,
            min_steps=2,
        ),
    }
)
