"""The catalogue: which technique obeys which settings, one case each.

Modules are imported when first asked for, so that a step of quantization never loads torch.
"""

from __future__ import annotations

from studio.engine.techniques.contract import Technique
from studio.records import steps


def find(settings: steps.Settings) -> Technique:
    """The technique that obeys `settings`.

    Raises:
        LookupError: no technique stands in the catalogue for this kind of settings (a bug).
    """
    match settings:
        case steps.Fp16():
            from studio.engine.techniques.fp16 import HalfPrecision

            return HalfPrecision()
        case steps.QuantizeWeights():
            from studio.engine.techniques.quantize_weights import WeightOnly

            return WeightOnly()
        case steps.QuantizeDynamic():
            from studio.engine.techniques.quantize_dynamic import DynamicInt8

            return DynamicInt8()
        case steps.QuantizeStatic():
            from studio.engine.techniques.quantize_static import StaticInt8

            return StaticInt8()
        case steps.ShareWeights():
            from studio.engine.techniques.share_weights import Codebooks

            return Codebooks()
        case steps.StoreNarrow():
            from studio.engine.techniques.store_narrow import NarrowStorage

            return NarrowStorage()
        case steps.Sparsify():
            from studio.engine.techniques.sparsify import Sparsity

            return Sparsity()
        case steps.RemoveBlocks():
            from studio.engine.techniques.remove_blocks import DepthPruning

            return DepthPruning()
        case steps.Student():
            from studio.engine.techniques.student import ScaledStudent

            return ScaledStudent()
        case steps.Factorize():
            from studio.engine.techniques.factorize import LowRank

            return LowRank()
        case steps.PruneChannels():
            from studio.engine.techniques.prune_channels import ChannelPruning

            return ChannelPruning()
        case steps.Finetune():
            from studio.engine.techniques.finetune import FineTuning

            return FineTuning()
        case steps.Distill():
            from studio.engine.techniques.distill import Distillation

            return Distillation()
        case steps.Qat():
            from studio.engine.techniques.qat import AwareTraining

            return AwareTraining()
        case _:
            raise LookupError(f"no technique for {type(settings).__name__}")
