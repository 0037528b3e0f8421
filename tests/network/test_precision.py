"""bfloat16 where a processor has instructions for it, and a note where a training would emulate it."""

import pytest
import torch

from crosscoop.network import precision

CPU = torch.device("cpu")


def capabilities(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make this CPU one with certain instructions for bfloat16."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True), raising=False)
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name in names, raising=False)


@pytest.mark.parametrize(
    ("names", "native"),
    [
        ((), False),
        (("avx2", "avx512_f"), False),
        (("avx512_bf16",), True),
        (("amx_tile",), True),
        (("arm_bf16",), True),
    ],
)
def test_native_bfloat16(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], native: bool) -> None:
    capabilities(monkeypatch, *names)
    assert precision.native_bfloat16(CPU) is native and not precision.native_bfloat16(torch.device("meta"))


@pytest.mark.parametrize(
    ("names", "wanted", "told"),
    [
        *((["avx2"], "bf16-mixed", True), (["avx2"], "bf16-true", True)),
        *((["avx2"], "32-true", False), (["avx512_bf16"], "bf16-mixed", False)),
    ],
)
def test_training_in_emulated_bfloat16_is_noted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], names: list[str], wanted: str, told: bool
) -> None:
    capabilities(monkeypatch, *names)
    monkeypatch.setattr(precision, "seconds_of_convolution", lambda dtype: 3.0 if dtype is torch.bfloat16 else 0.25)
    precision.note.cache_clear()
    precision.note_emulated_bfloat16(wanted, CPU)
    said = capsys.readouterr().err
    assert (f"trainer.precision is {wanted}" in said and "12.0 times as long" in said) is told and bool(said) is told


def test_a_convolution_takes_time() -> None:
    assert 0 < precision.seconds_of_convolution(torch.float32) < 60
