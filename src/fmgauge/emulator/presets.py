"""Profiles that imitate a 7B model on five kinds of instance. Nothing in them was measured.

Each follows from a machine's published figures by a roofline, with the same assumptions for all:
how fast weights can be read, prompts computed, and devices agree. docs/simulated.md has the sums.
Knows no prices, and nothing of how a profile is played.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fmgauge.config.simulated import BatchingProfile

# The model, after Llama 2 7B: 16-bit weights, 32 layers, and as many key heads as query heads.
PARAMETERS = 6.74e9
LAYERS = 32
WIDTH = 4096
BYTES_PER_NUMBER = 2
WEIGHTS_BYTES = PARAMETERS * BYTES_PER_NUMBER
KV_BYTES_PER_TOKEN = 2 * LAYERS * WIDTH * BYTES_PER_NUMBER
FLOP_PER_TOKEN = 2 * PARAMETERS
ALL_REDUCES = 2 * LAYERS  # one after attention, one after the feed-forward part

# Assumptions, the same for every machine.
BANDWIDTH_REACHED = 0.8  # share of the memory's bandwidth
COMPUTE_REACHED = 0.5  # share of the peak, on prompts
MEMORY_USED = 0.9  # share of the memory that weights and KV cache take together
HOST_STEP_S = 1e-3  # scheduling and launching, once a step
HOST_SEQUENCE_S = 10e-6  # sampling and turning tokens into text
JITTER = 0.05


@dataclass(frozen=True)
class Machine:
    """What a roofline asks of the machine; `devices` share every layer (tensor parallelism)."""

    devices: int
    memory_bytes: float  # of one device, as the next two
    memory_bytes_per_s: float
    flop_per_s: float  # dense, 16 bit
    slots: int
    all_reduce_s: float = 0.0  # agreeing on next to nothing
    link_bytes_per_s: float = 1.0  # of one device, while all of them agree on much


@dataclass(frozen=True)
class Preset:
    """A profile, what it imitates, and where its figures come from."""

    profile: BatchingProfile
    instance_type: str
    imitates: str
    source: str


def profile_of(machine: Machine) -> BatchingProfile:
    """The timing of the 7B model on `machine`, its times to three significant digits."""
    bandwidth = machine.devices * machine.memory_bytes_per_s * BANDWIDTH_REACHED
    compute = machine.devices * machine.flop_per_s * COMPUTE_REACHED
    agreeing_s = ALL_REDUCES * machine.all_reduce_s if machine.devices > 1 else 0.0
    exchange_s = _exchanged_bytes(machine.devices) / machine.link_bytes_per_s
    kv_bytes = machine.devices * machine.memory_bytes * MEMORY_USED - WEIGHTS_BYTES
    return BatchingProfile(
        step_s=_rounded(WEIGHTS_BYTES / bandwidth + agreeing_s + HOST_STEP_S),
        prefill_token_s=_rounded(FLOP_PER_TOKEN / compute + exchange_s),
        # A decoded token's arithmetic hides behind the reading of the weights: see `slots`.
        decode_sequence_s=_rounded(HOST_SEQUENCE_S + exchange_s),
        kv_token_s=_rounded(KV_BYTES_PER_TOKEN / bandwidth),
        slots=machine.slots,
        kv_tokens=int(kv_bytes // KV_BYTES_PER_TOKEN),
        jitter=JITTER,
    )


def preset(name: str) -> BatchingProfile:
    """The profile of the preset called `name`; KeyError where there is none."""
    return PRESETS[name].profile


def _exchanged_bytes(devices: int) -> float:
    """Bytes that one device sends for one token: ring all-reduces of its hidden state."""
    return ALL_REDUCES * WIDTH * BYTES_PER_NUMBER * 2 * (devices - 1) / devices


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.3g}")


def _imitation(instance_type: str, hardware: str, machine: Machine, source: str) -> Preset:
    imitates = f"a 7B model in 16 bit on {hardware} ({instance_type})"
    return Preset(profile_of(machine), instance_type, imitates, source)


_A10G = "NVIDIA's figures for the A10G: 24 GB, 600 GB/s, 70 TFLOPS dense in 16 bit"
_PCIE = "PCIe without peer access assumed at 10 GB/s"


def _a10g(devices: int, all_reduce_s: float = 0.0) -> Machine:
    return Machine(
        devices=devices,
        memory_bytes=24e9,
        memory_bytes_per_s=600e9,
        flop_per_s=70e12,
        slots=64,
        all_reduce_s=all_reduce_s,
        link_bytes_per_s=10e9,
    )


_A100S = Machine(
    devices=8,
    memory_bytes=40e9,
    memory_bytes_per_s=1555e9,
    flop_per_s=312e12,
    slots=64,
    all_reduce_s=20e-6,
    link_bytes_per_s=230e9,
)
_INFERENTIA2S = Machine(
    devices=12,
    memory_bytes=32 * 2**30,
    memory_bytes_per_s=820e9,
    flop_per_s=190e12,
    slots=32,
    all_reduce_s=50e-6,
    link_bytes_per_s=100e9,
)

_IMITATIONS = (
    _imitation("ml.g5.2xlarge", "one A10G", _a10g(1), _A10G),
    _imitation(
        "ml.g5.12xlarge",
        "four A10G",
        _a10g(4, all_reduce_s=40e-6),
        f"{_A10G}; {_PCIE}, 40 us to agree",
    ),
    _imitation(
        "ml.g5.48xlarge",
        "eight A10G",
        _a10g(8, all_reduce_s=80e-6),
        f"{_A10G}; {_PCIE}, 80 us to agree",
    ),
    _imitation(
        "ml.p4d.24xlarge",
        "eight A100 of 40 GB",
        _A100S,
        "NVIDIA's figures for the A100: 40 GB, 1,555 GB/s, 312 TFLOPS dense in 16 bit; NVLink "
        "assumed at 230 GB/s, 20 us to agree",
    ),
    _imitation(
        "ml.inf2.48xlarge",
        "twelve Inferentia2",
        _INFERENTIA2S,
        "AWS Neuron's figures for Inferentia2: 32 GiB, 820 GB/s, 190 TFLOPS in 16 bit; NeuronLink "
        "assumed at 100 GB/s, 50 us to agree",
    ),
)

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {f"imitated-7b-on-{imitation.instance_type}": imitation for imitation in _IMITATIONS}
)
