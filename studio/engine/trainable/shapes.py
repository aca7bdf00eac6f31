"""Which steps compute with shapes alone, so that their results can be kept from run to run."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from studio.engine.trainable.program import Program, Step, reads

# Operators whose output's *shape* depends on the *values* of these inputs.
_VALUES_SHAPE: dict[str, frozenset[int]] = {
    "ConstantOfShape": frozenset({0}),
    "Expand": frozenset({1}),
    "OneHot": frozenset({1}),
    "Pad": frozenset({1, 3}),
    "Range": frozenset({0, 1, 2}),
    "Reshape": frozenset({1}),
    "Resize": frozenset({1, 2, 3}),
    "Slice": frozenset({1, 2, 3, 4}),
    "Split": frozenset({1}),
    "Squeeze": frozenset({1}),
    "Tile": frozenset({1}),
    "TopK": frozenset({1}),
    "Unsqueeze": frozenset({1}),
    "Upsample": frozenset({1}),
    "CenterCropPad": frozenset({1}),
}
# Operators whose output's shape follows from the shapes (and the values above) of their inputs. Every
# operator that is not named here makes shapes that are not trusted.
_PLAIN = (
    frozenset(
        [
            "Abs",
            "Add",
            "And",
            "AveragePool",
            "BatchNormalization",
            "Cast",
            "Ceil",
            "Clip",
            "Concat",
            "Conv",
            "ConvTranspose",
            "Cos",
            "CumSum",
            "DepthToSpace",
            "DequantizeLinear",
            "Div",
            "Dropout",
            "Einsum",
            "Elu",
            "Equal",
            "Erf",
            "Exp",
            "Flatten",
            "Floor",
            "Gather",
            "GatherElements",
            "Gelu",
            "Gemm",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "Greater",
            "GreaterOrEqual",
            "GroupNormalization",
            "GRU",
            "HardSigmoid",
            "HardSwish",
            "Identity",
            "InstanceNormalization",
            "LayerNormalization",
            "LeakyRelu",
            "Less",
            "LessOrEqual",
            "Log",
            "LogSoftmax",
            "LSTM",
            "MatMul",
            "MatMulNBits",
            "Max",
            "MaxPool",
            "Mean",
            "Min",
            "Mod",
            "Mul",
            "Neg",
            "Not",
            "Or",
            "Pow",
            "PRelu",
            "QuantizeLinear",
            "Reciprocal",
            "Relu",
            "Round",
            "ScatterElements",
            "ScatterND",
            "Selu",
            "Shape",
            "Sigmoid",
            "Sign",
            "Sin",
            "Size",
            "Softmax",
            "Softplus",
            "Softsign",
            "SpaceToDepth",
            "Sqrt",
            "Sub",
            "Sum",
            "Tan",
            "Tanh",
            "Transpose",
            "Trilu",
            "Where",
            "Xor",
            "RMSNormalization",
            "Swish",
            "Mish",
            "Constant",
            "ArgMax",
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSum",
            "ReduceSumSquare",
        ]
    )
    | _VALUES_SHAPE.keys()
)


def shape_steps(
    steps: Sequence[Step],
    program: Program,
    known: set[int],
    weights: set[int],
    results: Collection[int],
    moving: Collection[str] = (),
) -> tuple[set[int], set[int]]:
    """Steps that need not run again for inputs of the same shapes.

    Args:
        steps: what is left after folding.
        program: of the main graph.
        known: slots of constants.
        weights: slots of trained constants: their shapes are known, their values are not.
        results: slots of what is asked of every run.
        moving: operators whose results may change from run to run all the same.

    Returns:
        The ids of those steps, and the slots of theirs that other steps read or that are results.
    """
    valued = set(known) | {0}  # value follows from the shapes of the inputs
    shaped = valued | weights | set(program.inputs)  # shape follows from them
    chosen: list[Step] = []
    for step in steps:
        op = step.call.op
        if step.control or step.call.domain not in ("", "com.microsoft") or op not in _PLAIN:
            continue
        inputs = step.inputs
        steering = _VALUES_SHAPE.get(op, frozenset())
        if op in ("Shape", "Size"):
            if inputs[0] in shaped:
                valued.update(step.outputs)
                chosen.append(step)
        elif op not in moving and all(i in valued for i in inputs) and inputs:
            valued.update(step.outputs)
            chosen.append(step)
        if all(i in valued if n in steering else i in shaped for n, i in enumerate(inputs)):
            shaped.update(step.outputs)
    ids = {id(s) for s in chosen}
    wanted = set(results)
    for step in steps:
        if id(step) not in ids:
            wanted |= reads(step) | set(step.inputs)
    slots = {s for step in chosen for s in step.outputs if s in wanted and s}
    return ids, slots
