"""Looking ahead: programs are read rightly, their costs are those one finds by hand, and failures are rows."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from mafx.ahead import __main__ as command
from mafx.ahead import compiling, summary
from mafx.ahead.categories import add_up, category, group, network_part
from mafx.ahead.compiling import Compiled, CompilerError, compile_apart
from mafx.ahead.costs import ATTENTION, CONVOLUTION, PALLAS_ATTENTION, PALLAS_PRODUCT, PRODUCT, kernels_of
from mafx.ahead.hlo import executions, loop_length, read_arrays, read_module
from mafx.ahead.pallas import PallasCall, find_call, pallas_calls
from mafx.ahead.programs import SAMPLING, Job
from mafx.ahead.reports import Memory, read_collectives, read_memory, read_weights
from mafx.ahead.rows import HEADER, Row, look_ahead, read_row, row_cells, row_record, whole_animation
from mafx.ahead.targets import GIB, TARGETS, Nvidia, Tpu
from mafx.errors import InputError

ROOT = Path(__file__).parent.parent
H100, V5E = TARGETS["h100"], TARGETS["v5e"]


def module(*lines, before=""):
    """A program whose entry has these instructions; the last one is its root."""
    *body, root = lines
    text = "\n".join([*(f"  {line}" for line in body), f"  ROOT {root}"])
    return read_module(f"HloModule jit_f\n\n{before}\nENTRY %main.1 (x: f32[]) -> f32[] {{\n{text}\n}}\n")


def kernel(*lines, target=H100, before="", calls=()):
    """The only kernel of such a program."""
    (only,) = kernels_of(module(*lines, before=before), target, calls)
    return only


# -- Targets


def test_targets_are_values_with_rates_below_their_peaks():
    for name, target in TARGETS.items():
        assert dataclasses.replace(target) == target and hash(target) == hash(dataclasses.replace(target)), name
        rates = target.rates
        assert max(rates.product, rates.convolution, rates.attention) < target.peak, name
        assert rates.float32 < rates.product and rates.bandwidth < target.peak_bandwidth, name
        assert 0 < target.kept < target.memory, name
        assert isinstance(target, Nvidia | Tpu)


def test_a_card_is_described_to_the_compiler():
    description = TARGETS["t4"].description()
    assert "cuda_compute_capability { major: 7 minor: 5 }" in description
    assert "core_count: 40 " in description and "shared_memory_per_block_optin: 65536 " in description
    assert "shared_memory_per_block_optin: 166912 " in TARGETS["a100"].description()


def test_kernels_are_chosen_for_the_card_and_not_for_this_machine():
    assert TARGETS["t4"].kernels(1).capability == (7, 5)
    assert TARGETS["v5p"].kernels(8).traced_platform == "tpu"


# -- Reading programs


def test_arrays_have_the_bytes_of_their_tiles():
    types = "(f32[4,2]{1,0}, /*index=1*/bf16[2,8,2048,40]{3,2,1,0:T(8,128)(2,1)}, pred[], s4[3]{0}, token[])"
    assert [array.size for array in read_arrays(types)] == [32, 2 * 2 * 8 * 2048 * 128, 1, 2, 0]
    (turned,) = read_arrays("bf16[2,8,2048,40]{2,3,1,0:T(8,128)(2,1)}")  # 40 rows of 2048: nothing to fill up
    assert turned.size == turned.items_size == 2 * 2 * 8 * 2048 * 40
    (short,) = read_arrays("s32[]{:T(128)}")
    assert (short.size, short.items_size) == (512, 4)


def test_instructions_are_read_over_line_breaks_and_through_tuples():
    read = module(
        "%x = f32[8]{0} parameter(0)",
        '%call.1 = (f32[8]{0:T(8,128)}, s32[]) custom-call(%x, /*index=1*/%x), attributes={kernel_metadata={\n"a": 1\n'
        '}}, metadata={op_name="jit(f)/jvp(mine)/pallas_call"}',
        "%y = f32[8]{0} get-tuple-element(%call.1), index=0",
    )
    call = read[read.entry]["call.1"]
    assert call.opcode == "custom-call" and call.operands == ("x", "x")
    assert [array.shape for array in call.arrays] == [(8,), ()]
    assert call.op_name == "jit(f)/jvp(mine)/pallas_call"
    assert list(read[read.entry]) == ["x", "call.1", "y"]


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="found no entry"):
        read_module("HloModule empty\n")


LOOP = """%body (t: (s32[], f32[4])) -> (s32[], f32[4]) {
  %t = (s32[], f32[4]{0}) parameter(0)
  %v = f32[4]{0} get-tuple-element(%t), index=1
  %e = f32[4]{0} exponential(%v)
  %i = s32[] get-tuple-element(%t), index=0
  ROOT %r = (s32[], f32[4]{0}) tuple(%i, %e)
}

%condition (t: (s32[], f32[4])) -> pred[] {
  %t.1 = (s32[], f32[4]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%t.1), index=0
  %limit = s32[] LIMIT
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}
"""


def looping(limit, attributes=""):
    return module(
        "%first = s32[] constant(2)",
        "%copied = s32[] copy(%first)",
        "%x = f32[4]{0} parameter(0)",
        "%start = (s32[], f32[4]{0}) tuple(%copied, %x)",
        f"%w = (s32[], f32[4]{{0}}) while(%start), condition=%condition, body=%body{attributes}",
        before=LOOP.replace("LIMIT", limit),
    )


@pytest.mark.parametrize(
    ("limit", "attributes", "length"),
    [
        ("constant(7)", "", 5),
        ("constant(7)", ', backend_config={"known_trip_count":{"n":"9"}}', 9),
        ("get-tuple-element(%t.1), index=0", "", 0),
        ("get-tuple-element(%t.1), index=1", "", None),
    ],
)
def test_loops_count_as_often_as_they_run(limit, attributes, length):
    program = looping(limit, attributes)
    entry = program[program.entry]
    assert loop_length(program, entry, entry["w"]) == length
    exponentials = [x for x in executions(program) if x.instruction.opcode == "exponential"]
    assert [(x.times, x.repeated) for x in exponentials] == [(1 if length is None else length, length is None)]


def test_the_longest_branch_counts():
    branch = "%NAME (p: f32[4]) -> f32[4] {\n  %p = f32[4]{0} parameter(0)\nLINES}\n"
    long = branch.replace("NAME", "long").replace("LINES", "  ROOT %s = f32[4]{0} sine(%p)\n")
    short = branch.replace("NAME", "short").replace("  %p", "  ROOT %p").replace("LINES", "")
    call = "%c = f32[4]{0} conditional(%i, %x, %x), branch_computations={%short, %long}"
    lines = ["%i = s32[] parameter(1)", "%x = f32[4]{0} parameter(0)"]
    assert kernel(*lines, call, before=long + "\n" + short).kind == "sine"
    call = "%c = f32[4]{0} conditional(%i, %x, %x), true_computation=%short, false_computation=%long"
    assert kernel(*lines, call, before=long + "\n" + short).kind == "sine"


# -- Costs


def test_a_matrix_product_of_cublas():
    product = kernel(
        "%a = bf16[6,100,40]{2,1,0} parameter(0)",
        "%b = bf16[6,40,30]{2,1,0} parameter(1)",
        '%p = (bf16[6,100,30]{2,1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", '
        'backend_config={"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"],'
        '"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]}}',
    )
    assert product.kind == PRODUCT
    assert product.work == (2 * 6 * 100 * 40 * 30, 2 * 6 * 100 * 40 * 30, "bf16")
    assert product.size == 2 * 6 * (100 * 40 + 40 * 30 + 100 * 30)  # without the workspace
    assert product.seconds == pytest.approx(product.size / 3e12 + 3e-6)


CONVOLUTION_LINES = (
    "%x = bf16[2,33,33,320]{3,2,1,0} parameter(0)",
    "%k = bf16[64,3,3,320]{3,2,1,0} parameter(1)",
    "%g = bf16[2,16,16,64]{3,2,1,0} parameter(2)",
)


@pytest.mark.parametrize(
    ("target", "operands", "result"),
    [
        ("Forward", "%x, %k", "bf16[2,16,16,64]"),
        ("BackwardFilter", "%x, %g", "bf16[64,3,3,320]"),
        ("BackwardInput", "%g, %k", "bf16[2,33,33,320]"),
    ],
)
def test_a_convolution_of_cudnn_and_its_gradients_do_as_much(target, operands, result):
    call = (
        f"%c = ({result}, u8[0]{{0}}) custom-call({operands}), window={{size=3x3 stride=2x2}}, "
        f'dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$conv{target}"'
    )
    work = kernel(*CONVOLUTION_LINES, call).work
    assert work.flops == work.padded == 2 * (2 * 16 * 16) * 64 * (3 * 3 * 320)


@pytest.mark.parametrize(("name", "products"), [("fmhaSoftmax", 2), ("fmhaSoftmaxBackward", 5)])
def test_attention_of_cudnn_pads_its_heads(name, products):
    attention = kernel(
        "%q = bf16[2,1024,8,40]{3,2,1,0} parameter(0)",
        "%k = bf16[2,2048,8,40]{3,2,1,0} parameter(1)",
        "%a = (bf16[2,8,1024,40]{3,1,2,0}, u8[64]{0}) custom-call(%q, %k, %k), "
        f'custom_call_target="__cudnn${name}", '
        'metadata={op_name="jit(f)/up_blocks_1/attn1/dot_product_attention_fwd"}, backend_config={"cudnn_fmha_backend_'
        'config": {"algorithm": {"algo_id": "0", "tuning_knobs": {"17": "1"}}, "intermediate_tensor_shape": '
        '{"element_type": "BF16", "dimensions": ["2", "8", "1024", "2048"], "tuple_shapes": []}}}',
    )
    flops = 2 * products * 2 * 8 * 1024 * 2048 * 40
    assert attention.kind == ATTENTION and attention.work == (flops, flops * 64 / 40, "bf16")
    assert attention.seconds == pytest.approx(flops * 64 / 40 / 400e12 + 3e-6)
    assert category(attention) == "attention, fused"


def test_xlas_own_convolution_does_not_count_zeros():
    lines = [
        "%x = bf16[2,16,16,64]{3,2,1,0} parameter(0)",
        "%k = bf16[3,3,320,64]{3,2,1,0} parameter(1)",
        "%c = bf16[2,32,32,320]{3,2,1,0} convolution(%x, %k), window={size=3x3 pad=2_1x2_1 lhs_dilate=2x2}, "
        'dim_labels=b01f_01oi->b01f, metadata={op_name="jit(f)/conv_general_dilated"}',
    ]
    convolution = kernel(*lines)
    # Along an axis each of 16 inputs meets three taps, but for the last, whose third output does not exist.
    assert convolution.kind == CONVOLUTION and convolution.work.flops == 2 * 2 * (16 * 3 - 1) ** 2 * 64 * 320
    assert convolution.work.padded == convolution.work.flops
    on_tpu = kernel(*lines, target=V5E)
    assert on_tpu.work.padded == convolution.work.flops * 128 / 64  # 64 channels in units of 128


def test_a_product_that_is_written_as_a_convolution_is_one():
    product = kernel(
        "%w = bf16[8,4,320]{2,1,0} parameter(0)",
        "%t = bf16[77,320]{1,0} parameter(1)",
        "%v = bf16[77,320,1]{2,1,0} bitcast(%t)",
        "%p = bf16[77,8,4]{0,2,1} convolution(%v, %w), window={size=8 pad=7_7 rhs_reversal=1}, "
        'dim_labels=bf0_0oi->b0f, metadata={op_name="jit(f)/attn2/to_v/dot_general"}',
        target=V5E,
    )
    assert product.kind == PRODUCT and product.work.flops == 2 * 77 * 320 * (8 * 4)
    # 320 channels and 77 x 8 rows in units of 128
    assert product.work.padded == pytest.approx(product.work.flops * 384 / 320 * 640 / 616)


FUSED = """%inner (p: f32[8,4]) -> f32[2,4] {
  %p = f32[8,4]{1,0} parameter(0)
  ROOT %s = f32[2,4]{1,0} slice(%p), slice={[0:2], [0:4]}
}

%fused (a: f32[8,4], b: f32[100], c: f32[2,4], i: s32[]) -> (f32[8,4], f32[2,3]) {
  %a = f32[8,4]{1,0} parameter(0)
  %b = f32[100]{0} parameter(1)
  %c = f32[2,4]{1,0} parameter(2)
  %i = s32[] parameter(3)
  %n = f32[2,4]{1,0} fusion(%a), kind=kLoop, calls=%inner
  %d = f32[10]{0} dynamic-slice(%b, %i), dynamic_slice_sizes={10}
  %w = f32[4,3]{1,0} constant({...})
  %m = f32[2,3]{1,0} dot(%n, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %u = f32[8,4]{1,0} dynamic-update-slice(%a, %c, %i, %i)
  ROOT %t = (f32[8,4]{1,0}, f32[2,3]{1,0}) tuple(%u, %m)
}
"""


def test_a_fusion_moves_only_the_slices_it_uses():
    fusion = kernel(
        "%x = f32[8,4]{1,0} parameter(0)",
        "%y = f32[100]{0} parameter(1)",
        "%z = f32[2,4]{1,0} parameter(2)",
        "%j = s32[] parameter(3)",
        "%f = (f32[8,4]{1,0}, f32[2,3]{1,0}) fusion(%x, %y, %z, %j), kind=kCustom, calls=%fused",
        before=FUSED,
    )
    read = 2 * 4 + 10 + 2 * 4 + 1  # a slice of a, a slice of b, c, the index
    written = 2 * 4 + 2 * 3  # the slice that is updated, and the product
    assert fusion.size == 4 * (read + written)
    assert fusion.kind == PRODUCT and fusion.work == (2 * 2 * 4 * 3, 2 * 2 * 4 * 3, "f32")
    assert "slice" in fusion.opcodes and "dot" in fusion.opcodes


def test_what_moves_nothing_is_no_kernel():
    assert not kernels_of(
        module(
            "%x = f32[8]{0} parameter(0)",
            '%r = f32[8]{0} custom-call(), custom_call_target="AllocateBuffer"',
            "%b = f32[4,2]{1,0} bitcast(%x)",
            "%t = (f32[8]{0}, f32[4,2]{1,0}) tuple(%r, %b)",
        ),
        H100,
    )
    copy = kernel("%x = f32[8]{0} parameter(0)", "%s = (f32[8]{0}, f32[8]{0}, u32[]) copy-start(%x)")
    assert copy.size == 2 * 32


def test_a_kernel_takes_the_longer_of_arithmetic_and_memory():
    product = (
        "%a = bf16[4096,4096]{1,0} parameter(0)",
        "%p = bf16[4096,4096]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
    )
    assert kernel(*product).seconds == pytest.approx(2 * 4096**3 / 600e12 + 3e-6)
    wide = tuple(line.replace("bf16", "f32") for line in product)
    assert kernel(*wide).seconds == pytest.approx(2 * 4096**3 / 50e12 + 3e-6)
    copy = kernel("%a = bf16[4096,4096]{1,0} parameter(0)", "%c = bf16[4096,4096]{0,1} copy(%a)", target=V5E)
    assert copy.seconds == pytest.approx(2 * 2 * 4096**2 / 700e9 + 1e-6)


# -- Pallas


def call_kernel(x, cost=None, name="mine"):
    def multiply(x_ref, out_ref):
        out_ref[...] = x_ref[...] @ x_ref[...]

    block = pl.BlockSpec((16, 16), lambda i: (i, 0))
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(
        multiply, out_shape=out, grid=(4,), in_specs=[block], out_specs=block, cost_estimate=cost, name=name
    )(x)


def test_pallas_kernels_are_found_in_the_traced_program():
    estimate = pl.CostEstimate(flops=77, transcendentals=0, bytes_accessed=0)

    @jax.jit
    def program(x):
        return jax.lax.fori_loop(0, 3, lambda _, x: call_kernel(x, estimate), call_kernel(x, name="other"))

    shape = ((64, 16),)
    calls = pallas_calls(program.trace(jax.ShapeDtypeStruct((64, 16), jnp.float32)).jaxpr.jaxpr)
    assert calls == {
        PallasCall("mine", shape, shape, 77),
        PallasCall("other", shape, shape, 4 * 2 * 16**3),  # the products in its body, times its grid
    }
    assert find_call(calls, "jit(f)/other/pallas_call", shape, shape).flops == 4 * 2 * 16**3
    assert find_call(calls, "jit(f)/mine/pallas_call", shape, shape).flops == 77
    assert find_call(calls, "jit(f)/mine/pallas_call", shape, ((64,),)) is None


@pytest.mark.parametrize(
    ("target", "custom_call", "path", "kind", "padded"),
    [
        ("h100", "__gpu$xla.gpu.triton", "attn1/mine", PALLAS_ATTENTION, 7700),
        ("h100", "__gpu$xla.gpu.triton", "ff/mine", PALLAS_PRODUCT, 7700),
        ("v5e", "tpu_custom_call", "attn1/mine", ATTENTION, 7700 * 128 / 40),
    ],
)
def test_a_custom_call_has_the_arithmetic_of_its_pallas_kernel(target, custom_call, path, kind, padded):
    calls = [PallasCall("mine", ((2, 8, 40),), ((2, 8, 40),), 7700)]
    lines = (
        "%x = bf16[2,8,40]{2,1,0} parameter(0)",
        f'%p = bf16[2,8,40]{{2,1,0}} custom-call(%x), custom_call_target="{custom_call}", '
        f'metadata={{op_name="jit(f)/{path}/pallas_call"}}, backend_config={{ir = "ML\\EF(((%not", name = "mine"}}',
    )
    found = kernel(*lines, target=TARGETS[target], calls=calls)
    assert found.kind == kind and found.work == (7700, padded, "bf16")


# -- What a kernel belongs to


DOWN, UP = "Animator.denoise/unet.encode/encoder/down_blocks_0", "Animator.denoise/unet.decode/decoder/up_blocks_3"
CONTROL = "Animator.residuals/control/encoder/down_blocks_0"
TEMPORAL = f"{UP}/motion_modules_0/transformer_blocks_0/attention_blocks_0"


@pytest.mark.parametrize(
    ("path", "opcode", "kind", "part"),
    [
        (f"{CONTROL}/resnets_0/norm1/reduce_sum", "reduce", "GroupNorm: statistics", "ControlNet"),
        (f"{DOWN}/attentions_0/transformer_blocks_0/norm1/mul", "multiply", "LayerNorm", "UNet: down path"),
        (f"{TEMPORAL}/exp", "exponential", "temporal softmax", "UNet: middle and up"),
        (f"{TEMPORAL}/to_out/add", "add", "temporal layout, add", "UNet: middle and up"),
        (f"{UP}/attentions_0/transformer_blocks_0/ff/mul", "multiply", "GEGLU", "UNet: middle and up"),
        ("Animator.bank/up_blocks_3/concatenate", "pad", "copies, transposes, slices", "appearance encoder"),
        ("autoencoder/decoder/conv_norm_out/sub", "subtract", "GroupNorm: normalise, SiLU", "autoencoder"),
        ("jvp()/convert_element_type", "convert", "add, cast, ...", "weights: update, norms, casts"),
        ("jvp()/add", "add", "add, cast, ...", "everything else"),
    ],
)
def test_kernels_are_sorted_by_their_names(path, opcode, kind, part):
    before = f"""%fused (p: f32[4]) -> f32[4] {{
  %p = f32[4]{{0}} parameter(0)
  ROOT %r = f32[4]{{0}} {opcode}(%p), metadata={{op_name="jit(f)/{path}"}}
}}
"""
    fusion = f'%f = f32[4]{{0}} fusion(%x), kind=kLoop, calls=%fused, metadata={{op_name="jit(f)/{path}"}}'
    found = kernel("%x = f32[4]{0} parameter(0)", fusion, before=before)
    assert (category(found), network_part(found)) == (kind, part)


def test_what_a_training_step_does_outside_of_the_loss_is_apart():
    norm = 'reduce(%x), dimensions={0}, metadata={op_name="jit(step)/reduce_sum"}'
    found = kernel("%x = f32[4]{0} parameter(0)", f"%n = f32[] {norm}")
    assert (category(found), network_part(found)) == ("other reductions", "weights: update, norms, casts")


def test_calls_of_unknown_libraries_are_named():
    found = kernel("%x = f32[4]{0} parameter(0)", '%n = f32[] custom-call(%x), custom_call_target="TopK"')
    assert category(found) == "others: TopK" and found.work.flops == 0


def test_sums_count_every_run():
    kernels = kernels_of(looping("constant(7)"), H100)
    sums = group(kernels, lambda kernel: kernel.kind)
    assert sums["exponential"].launches == 5 and sums["exponential"].size == 5 * 2 * 16
    assert sums["copy"].launches == 1
    assert add_up(kernels).launches == 6 and add_up(kernels).seconds == pytest.approx(6 * 3e-6, rel=1e-3)


# -- Reports

# Of a program with two arguments of 100 and 20 bytes, the second of which is donated. Both formats exist.
BUFFERS = """BufferAssignment:
allocation 0: size 100, {page}parameter 0, shape |f32[25]| at ShapeIndex {{}}:
 value: <1 x @0> (size=100,offset=0): f32[25]{{0}}
allocation 1: size 20, {page}parameter 1, shape |f32[5]| at ShapeIndex {{}}, maybe-live-out:
allocation 2: size 3000, {page}preallocated-temp:
allocation 3: size 70000, color 1, {page}preallocated-temp:
allocation 4: size 70000, {page}thread-local:
allocation 5: size 4, {page}constant:
allocation 6: size 1, {page}output shape is |(f32[5])|, maybe-live-out:
"""

SCATTER = """%all-reduce-scatter.1 (x: f32[8]) -> f32[4] {
  %x = f32[8]{0} parameter(0)
  %all-reduce.7 = f32[8]{0} all-reduce(%x), replica_groups={}
  ROOT %d = f32[4]{0} slice(%all-reduce.7), slice={[0:4]}
}
"""
EXCHANGE = (
    "%params__unet____kernel__.1 = bf16[3,3,8]{2,1,0} parameter(0), metadata={op_name=\"params[\\'unet\\']\"}",
    "%params__text____bias__.1 = f32[5]{0} parameter(1), metadata={op_name=\"params[\\'text\\'][\\'bias\\']\"}",
    '%state_x.1 = f32[16,4]{1,0} parameter(2), metadata={op_name="state.x"}',
    "%y = f32[8]{0} parameter(3)",
    "%all-gather.2 = (bf16[2]{0}, f32[10,2]{1,0}) all-gather(%y, %y), dimensions={0}",
    "%all-reduce-start.3 = f32[6]{0} all-reduce-start(%y)",
    "%all-reduce-done.3 = f32[6]{0} all-reduce-done(%all-reduce-start.3)",
    "%reduce-scatter.4 = f32[4]{0} reduce-scatter(%y), dimensions={0}",
    "%fusion.5 = f32[4]{0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1",
)


@pytest.mark.parametrize("page", ["", "page 0, "])
def test_allocations_are_summed_by_what_they_hold(page):
    needed = read_memory(BUFFERS.format(page=page))
    assert needed == Memory(arguments=120, donated=20, temporaries=3000, rest=5)
    assert needed.total == 3125


def test_exchanged_arrays_are_counted_once():
    assert read_collectives(module(*EXCHANGE, before=SCATTER)) == {
        "all-reduce": 6 * 4,
        "all-gather": 2 * 2 + 20 * 4,
        "reduce-scatter": 2 * 8 * 4,  # one by its name, one by its computation's
        "all-to-all": 0,
        "collective-permute": 0,
    }


def test_exchange_counts_in_loops_of_known_length_only():
    inside = "%e = f32[4]{0} all-reduce(%v)"
    loop = LOOP.replace("%e = f32[4]{0} exponential(%v)", inside)
    lines = (
        "%first = s32[] constant(0)",
        "%x = f32[4]{0} parameter(0)",
        "%start = (s32[], f32[4]{0}) tuple(%first, %x)",
    )
    run = "%w = (s32[], f32[4]{0}) while(%start), condition=%condition, body=%body"
    known = module(*lines, run, before=loop.replace("LIMIT", "constant(3)"))
    assert read_collectives(known)["all-reduce"] == 3 * 16
    unknown = module(*lines, run, before=loop.replace("LIMIT", "get-tuple-element(%t.1), index=1"))
    with pytest.raises(ValueError, match="e stands in a loop"):
        read_collectives(unknown)


def test_weights_are_the_arguments_with_their_name():
    assert read_weights(module(*EXCHANGE, before=SCATTER)) == 72 * 2 + 5 * 4


# -- Rows and tables


def part_row(program, needed=GIB, seconds_of=1, **changes):
    """The row of a part that needs some bytes and copies some kilobytes in each of its runs."""
    copy = kernel("%a = f32[256]{0} parameter(0)", "%c = f32[256]{0} copy(%a)")
    kernels = (dataclasses.replace(copy, seconds=seconds_of),)
    memory = Memory(needed, 0, 0, 0)
    return Row(Job(target="4090", program=program), 1.0, memory=memory, flops=10**12, kernels=kernels, **changes)


def test_a_row_has_a_cell_for_every_column():
    compiled = Compiled(
        runs=25,
        examples=1,
        weights=1000,
        flops=2 * 10**12,
        calls=[],
        buffers=BUFFERS.format(page=""),
        hlo="ENTRY %main (x: f32[]) -> f32[] {\n" + "\n".join(f"  {line}" for line in EXCHANGE[:4]) + "\n}\n",
        machine_code=False,
    )
    row = read_row(Job(target="h100", program="steps"), compiled, minutes=2.0)
    assert (row.memory.total, row.unused_weights, row.needed) == (3125, 1000 - 164, 3125 + 836)
    cells = dict(zip(HEADER, row_cells(row), strict=True))
    assert cells["result"] == "fits, machine code not made" and cells["runs"] == 25 and cells["TFLOP"] == "2.00"
    record = json.loads(json.dumps(row_record(row)))
    assert record["program"] == "steps" and record["needed"] == row.needed and record["fits"]


def test_what_is_in_loops_of_unknown_length_is_apart_from_what_is_not():
    kernels = tuple(kernels_of(looping("get-tuple-element(%t.1), index=1"), H100))
    row = Row(Job(target="h100", program="steps"), 1.0, kernels=kernels)
    assert [k.kind for k in row.repeated] == ["exponential"]
    assert row.time.launches == 2 and row.once.launches == 1


def test_what_does_not_fit_is_said():
    usable = TARGETS["4090"].usable
    assert row_cells(part_row("steps", usable, machine_code=True))[1] == "fits"
    assert row_cells(part_row("steps", usable, unused_weights=1, machine_code=True))[1] == "too large"


def test_an_animation_is_its_largest_part_and_all_its_runs():
    rows = [part_row(name, i * GIB, 0.5, runs=i + 1) for i, name in enumerate(SAMPLING)]
    animation = whole_animation([*rows, part_row("temporal", 99 * GIB)])
    assert animation.needed == 5 * GIB and animation.fits
    assert animation.seconds == 0.5 * 21 and animation.flops == 21 * 10**12
    assert whole_animation(rows[1:]) is None
    assert whole_animation([*rows[1:], Row(rows[0].job, 1.0, failure="no")]) is None


# -- Processes


class Process:
    """Stands in for the process that compiles: it writes some files, and ends or hangs."""

    def __init__(self, files, status):
        self.files, self.returncode, self.status = files, None, status

    def __call__(self, command, **_):
        folder = Path(command[-1])
        assert json.loads((folder / compiling.JOB).read_text())["program"] == "text"
        for name, text in self.files.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return self

    def poll(self):
        self.returncode = self.status
        return self.status

    def kill(self):
        self.returncode = -9 if self.status is None else self.status

    def wait(self):
        return self.returncode


TRACED = {"runs": 1, "examples": 1, "weights": 7, "flops": 5, "calls": [["mine", [[2]], [[3]], 4]]}
WRITTEN = {
    compiling.TRACED: json.dumps(TRACED),
    f"{compiling.REPORTS}/module_1.gpu_after_optimizations-buffer-assignment.txt": "buffers",
    f"{compiling.REPORTS}/module_1.gpu_after_optimizations.txt": "hlo",
    f"{compiling.REPORTS}/module_1.gpu_after_optimizations-memory-usage-report.txt": "more",
}
JOB = Job(target="h100", program="text")


@pytest.mark.parametrize(("status", "quick"), [(0, False), (0, True), (None, True)])
def test_reports_come_from_a_process_of_their_own(monkeypatch, tmp_path, status, quick):
    monkeypatch.setattr(subprocess, "Popen", Process(WRITTEN, status))
    compiled = compile_apart(JOB, tmp_path, quick)
    calls = [PallasCall("mine", ((2,),), ((3,),), 4)]
    assert compiled == Compiled(1, 1, 7, 5, calls, "buffers", "hlo", machine_code=status == 0)


@pytest.mark.parametrize(
    ("status", "files", "reason"),
    [
        (1, {compiling.FAILURE: "out of memory: 34 GB"}, "out of memory: 34 GB"),
        (1, {compiling.FAILURE: "x" * 9}, "x" * 9),
        (-11, {}, "the compiler was killed by signal 11"),
        (3, {}, "the compiler ended with status 3"),
    ],
)
def test_a_failure_is_a_row_with_its_reason(monkeypatch, status, files, reason):
    monkeypatch.setattr(subprocess, "Popen", Process(files, status))
    row = look_ahead(JOB, quick=False)
    assert row.failure == reason and not row.fits
    cells = row_cells(row)
    assert len(cells) == len(HEADER) and cells[:3] == ["text", f"fails: {reason}", None]
    assert row_record(row)["failure"] == reason


def test_the_last_words_of_a_crash_are_its_reason(tmp_path):
    (tmp_path / compiling.LOG).write_text("loading\nF0000 Check failed:  n == 0 \n\n")
    with pytest.raises(CompilerError, match=r"^the compiler was killed by signal 6; F0000 Check failed: n == 0$"):
        raise CompilerError(compiling._reason(tmp_path, -6))


# -- The command


@pytest.mark.parametrize("name", ["mafx.ahead", "mafx.ahead.summary"])
def test_commands_say_how_they_are_called(name):
    run = [sys.executable, "-m", name, "--help"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m {name} [FLAGS]")
    assert f"\n    python -m {name}" in done.stdout, "the docstring has no example"


def test_an_unknown_target_is_named(capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--target", "h200000"])
    assert end.value.code == 2 and "h200000" in capsys.readouterr().err


@pytest.mark.parametrize(("target", "package"), [("h100", "CUDA plug-in"), ("v5e", "libtpu")])
def test_a_missing_compiler_is_named(monkeypatch, target, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"expected .*{package}.*pip install"):
        command.main(["--target", target])


def test_training_is_asked_for_on_many_devices_and_with_every_policy():
    def jobs(*flags):
        return command.make_jobs("v5p", command.make_parser().parse_args(["--target", "v5p", *flags]))

    assert [job.program for job in jobs()] == [*SAMPLING, "appearance", "temporal"]
    assert [(job.policy, job.topology) for job in jobs("--programs", "temporal", "--remat", "none", "blocks")] == [
        ("none", None),
        ("blocks", None),
    ]
    spread = jobs("--topology", "2x2x2", "4x4x4", "--fsdp", "1", "8", "--programs", "appearance", "text")
    assert [(job.topology, job.fsdp) for job in spread] == [
        ("2x2x2", 1), ("2x2x2", 8), ("4x4x4", 1), ("4x4x4", 8), (None, 1),
    ]  # fmt: skip
    assert command.make_jobs("t4", command.make_parser().parse_args(["--target", "t4"]))[0].dtype == "float16"


def test_a_table_is_printed_and_its_rows_are_written(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(command, "check_compiler", lambda target: None)

    def fail_to_decode(job, quick):
        if job.program == "decoding":
            return Row(job, 1.0, failure="it is too late")
        return part_row(job.program, runs=2)

    monkeypatch.setattr(command, "look_ahead", fail_to_decode)
    path = tmp_path / "rows.json"
    with pytest.raises(SystemExit) as end:
        command.main(["--target", "4090", "--programs", "steps", "decoding", "--detail", "--json", str(path)])
    assert end.value.code == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[:4]] == ["| program", "| ---", "| steps", "| decoding"]
    assert "| fails: it is too late |" in lines[3]
    assert {line.count("|") for line in lines[:4]} == {len(HEADER) + 1}
    assert [record["failure"] for record in json.loads(path.read_text())] == [None, "it is too late"]

    monkeypatch.setattr(command, "look_ahead", lambda job, quick: part_row(job.program, runs=2))
    command.main(["--target", "4090", "--programs", *SAMPLING, "--json", str(path)])
    assert "| animation | fits | 1 |" in capsys.readouterr().out
    assert json.loads(path.read_text())[-1]["seconds"] == pytest.approx(2 * len(SAMPLING))


# -- Summaries


def test_many_runs_are_two_tables(tmp_path, capsys):
    parts = [row_record(part_row(name, GIB, 0.5, runs=2)) for name in SAMPLING]
    late = parts[0] | {"size": [256, 256], "failure": "too late"}
    trained = row_record(part_row("temporal", 99 * GIB)) | {"remat": "blocks"}
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text(json.dumps([*parts, {"target": "4090", "program": "animation", "seconds": 5.0}]))
    part = parts[4] | {"frames": 32}
    second.write_text(
        json.dumps([late, part, trained, trained | {"topology": "1x1x8"}, trained | {"failure": "no plan"}])
    )
    summary.main([str(first), str(second)])
    sampled, trained_table = capsys.readouterr().out.split("\n\n")
    card = "| NVIDIA GeForce RTX 4090 | 24.0 |"
    assert sampled.splitlines()[2:] == [
        f"{card} 512x512 | 16 | bfloat16 | fits | 1.00 | 500.0 | 500.0 | 6.00 |",
        f"{card} 256x256 | 16 | bfloat16 | text fails |  |  |  |  |",
        f"{card} 512x512 | 32 | bfloat16 | fits, 1 of 6 parts | 1.00 | 500.0 |  |  |",
    ]
    assert trained_table.splitlines()[2:] == [
        f"{card} temporal | blocks | 512x512 | bfloat16 | too large | 99.00 | 1.0 | 1000 |",
        f"{card} temporal | blocks | 512x512 | bfloat16 | fails: no plan |  |  |  |",
    ]


def test_the_page_has_what_the_model_assumes(capsys):
    summary.main([])
    assert capsys.readouterr().out in (ROOT / "docs" / "cards.md").read_text()


def test_files_that_are_no_rows_are_named(tmp_path):
    path = tmp_path / "c.json"
    for text in ("{", '[{"a": 1}]', "3"):
        path.write_text(text)
        with pytest.raises(InputError, match="c.json"):
            summary.main([str(path)])


# -- With the compilers


def has(module_name):
    try:
        return importlib.util.find_spec(module_name) is not None
    except ModuleNotFoundError:
        return False


CUDA = pytest.mark.skipif(not has("jax_plugins.xla_cuda12"), reason='needs JAX\'s CUDA plug-in ("jax[cuda12]")')
LIBTPU = pytest.mark.skipif(not has("libtpu"), reason='needs libtpu ("jax[tpu]")')


@pytest.mark.parametrize("target", [pytest.param("t4", marks=CUDA), pytest.param("v5e", marks=LIBTPU)])
@pytest.mark.parametrize("program", ["text", "decoding"])
def test_programs_compile_for_cards_that_are_not_here(target, program):
    job = Job(target=target, program=program, model="tiny", dtype=TARGETS[target].dtype, size=(32, 32))
    row = look_ahead(job, quick=program == "decoding")
    assert row.failure is None and row.fits and row.runs == (16 if program == "decoding" else 1)
    assert row.machine_code == (program == "text")
    # XLA fills channels up to what tensor cores take, and drops what meets the border of a convolution.
    assert 0.7 * row.flops < row.time.flops < 1.6 * row.flops
    assert row.memory.arguments > 0 and row.unused_weights > 0 and row.time.seconds > 0


@pytest.mark.parametrize("target", [pytest.param("4090", marks=CUDA), pytest.param("v5e", marks=LIBTPU)])
def test_what_does_not_compile_is_a_row(target):
    row = look_ahead(Job(target=target, program="text", model="tiny", size=(31, 32)), quick=True)
    assert row.failure is not None and "divisible" in row.failure and not row.fits


def test_a_config_says_what_its_step_is():
    args = command.make_parser().parse_args(["--target", "4090", "--config", "card24:tiktok:temporal"])
    command.take_config(args)
    (job,) = command.make_jobs("4090", args)
    assert (job.program, job.model, job.size, job.frames, job.batch) == ("temporal", "sd15", (512, 512), 16, 1)
    assert (job.remat, job.dtype, job.config) == ("blocks", "bfloat16", "card24:tiktok:temporal")
