"""vLLM's own scheduler in virtual time: no GPU, no weights, no tokenizer (docs/emulate.md)."""

from engine_adapter.emulator.emulation import EmulationResult, emulate

__all__ = ["EmulationResult", "emulate"]
