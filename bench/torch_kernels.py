#!/usr/bin/env python3
"""The rival of `caravan bench kernels`: answers one request a line with the time of the same op in PyTorch.

usage: torch_kernels.py --threads N --dtype {fp32|bf16} [--device {cpu|cuda}]

The first line out says {"libraries": {name: version}}. A request is {"library", "op", "sample", "budget"} with the sample of
the op table; the answer is {"seconds"}, of one call, or {} where the library has no such op. Libraries: "torch"; on the CPU
"onednn" for matrix products; on a GPU "compile" (torch.compile) for what it fuses, and "flash" and "cudnn", the backends of
attention. Data is made once for each op and sample; on a GPU several sets of it take turns, so that no cache serves them,
and time is that between two events around many calls.
"""
import argparse
import json
import math
import re
import sys
import time
import warnings

import torch
from torch.nn import functional

parser = argparse.ArgumentParser()
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
args = parser.parse_args()
warnings.filterwarnings("ignore")
torch.set_num_threads(args.threads)
dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
cuda = args.device == "cuda"
# f32 products in f32, as ours are.
torch.backends.cuda.matmul.allow_tf32 = False

ROTATED_BYTES = 2**28
MOST_SETS = 8


def random(*shape, kind=None):
    return torch.randn(*shape, dtype=kind or dtype, device=args.device)


def integers(high, *shape):
    return torch.randint(0, high, shape, device=args.device)


def free(sample, name):
    return random(*sample["shapes"][name])


def lead(sample):
    return sample.get("lead") or [sample["N"]]


# Each maker takes a sample and `fused`, which is the identity, or torch.compile; it gives a function without arguments.

def binary(function):
    def make(sample, fused):
        a, b, f = free(sample, "a"), free(sample, "b"), fused(function)
        return lambda: f(a, b)
    return make


def unary(function):
    def make(sample, fused):
        x, f = free(sample, "x").abs() + 0.01, fused(function)
        return lambda: f(x)
    return make


def add_into(sample, fused):
    y, x = free(sample, "y"), free(sample, "x")
    return lambda: y.add_(x)


def row_sum(sample, fused):
    x = free(sample, "x")
    return lambda: x.sum(sample["axis"], keepdim=True)


def cast(sample, fused):
    x, kind = free(sample, "x"), {0: torch.float32, 1: torch.bfloat16}.get(sample["dtype"], torch.float64)
    return lambda: x.to(kind, copy=True)


def dropout(sample, fused):
    x = free(sample, "x")
    return lambda: functional.dropout(x, sample["rate"])


def linear(sample, fused):
    x, w = random(*lead(sample), sample["D"]), random(sample["F"], sample["D"])
    return lambda: functional.linear(x, w)


def linear_backward_input(sample, fused):
    dy, w = random(*lead(sample), sample["F"]), random(sample["F"], sample["D"])
    return lambda: dy @ w


def linear_backward_weight(sample, fused):
    dy, x = random(*lead(sample), sample["F"]), random(*lead(sample), sample["D"])
    return lambda: (dy.T @ x).float()


def matmul(sample, fused):
    a = random(sample["G"], sample["A1"], sample["A2"])
    b = random(sample["G"], sample["B1"], sample["B2"])
    a = a.transpose(1, 2) if sample["transpose_a"] else a
    b = b.transpose(1, 2) if sample["transpose_b"] else b
    return lambda: torch.bmm(a, b)


def backward_of(function, *inputs):
    """The gradients of `inputs` under a random gradient of the result, whose forward pass has been made once."""
    inputs = [x.requires_grad_() for x in inputs]
    y = function(*inputs)
    dy = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


def norm_of(sample):
    eps = sample.get("eps", 1e-6)
    return lambda x, w: functional.rms_norm(x, (sample["D"],), w, eps)


def rms_norm(sample, fused):
    x, w, f = random(*lead(sample), sample["D"]), random(sample["D"]), fused(norm_of(sample))
    return lambda: f(x, w)


def rms_norm_backward(sample, fused):
    return backward_of(fused(norm_of(sample)), random(*lead(sample), sample["D"]), random(sample["D"]))


def add_rms_norm(sample, fused):
    norm = norm_of(sample)
    def both(x, residual, w):
        total = x + residual
        return total, norm(total, w)
    x, residual = random(*lead(sample), sample["D"]), random(*lead(sample), sample["D"])
    w, f = random(sample["D"]), fused(both)
    return lambda: f(x, residual, w)


def layer_norm(sample, fused):
    x, f = random(*lead(sample), sample["D"]), fused(lambda x: functional.layer_norm(x, (sample["D"],)))
    return lambda: f(x)


def layer_norm_backward(sample, fused):
    return backward_of(fused(lambda x: functional.layer_norm(x, (sample["D"],))), random(*lead(sample), sample["D"]))


def gated(gate, up):
    return functional.silu(gate) * up


def swiglu(sample, fused):
    gate, up = random(*lead(sample), sample["F"]), random(*lead(sample), sample["F"])
    f = fused(gated)
    return lambda: f(gate, up)


def swiglu_backward(sample, fused):
    return backward_of(fused(gated), random(*lead(sample), sample["F"]), random(*lead(sample), sample["F"]))


def rope(sample, fused):
    def rotate(x, cos, sin):
        half = x.shape[-1] // 2
        return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin
    x = random(sample["N"], sample["H"], sample["C"])
    cos, sin = random(sample["N"], 1, sample["C"]), random(sample["N"], 1, sample["C"])
    f = fused(rotate)
    return lambda: f(x, cos, sin)


def embedding(sample, fused):
    ids, w = integers(sample["V"], sample["N"]), random(sample["V"], sample["D"])
    return lambda: functional.embedding(ids, w)


def embedding_backward(sample, fused):
    ids = integers(sample["V"], sample["N"])
    return backward_of(lambda w: functional.embedding(ids, w), random(sample["V"], sample["D"]))


def heads(sample):
    """Queries, keys and values as a batch; None where the sequences differ in length, which a batch cannot say."""
    queries, keys = set(sample["queries"]), set(sample["keys"])
    if len(queries) != 1 or len(keys) != 1 or sample["window"] != 0:
        return None
    count, repeats = sample["S"], sample["H"] // sample["K"]
    q = random(count, sample["H"], queries.pop(), sample["C"])
    k = random(count, sample["K"], keys.pop(), sample["C"])
    v = torch.randn_like(k)
    if not cuda:
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    return q, k, v


def attend(sample):
    def function(q, k, v):
        grouped = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
        causal = q.shape[2] > 1
        return functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=sample["scale"], **grouped)
    return function


def attention(sample, fused):
    inputs = heads(sample)
    return inputs and (lambda: attend(sample)(*inputs))


def attention_backward(sample, fused):
    inputs = heads(sample)
    return inputs and backward_of(attend(sample), *inputs)


def with_backend(maker, name):
    """`maker` under one backend of attention, forward and backward."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    backend = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}[name]
    def make(sample, fused):
        with sdpa_kernel(backend):
            call = maker(sample, fused)
        if call is None:
            return None
        def inside():
            with sdpa_kernel(backend):
                return call()
        return inside
    return make


def logprobs(hidden, head, target):
    logits = functional.linear(hidden, head).float()
    return logits.gather(1, target) - torch.logsumexp(logits, 1, keepdim=True)


def linear_logprob(sample, fused):
    hidden, head = random(sample["N"], sample["D"]), random(sample["V"], sample["D"])
    target, f = integers(sample["V"], sample["N"], 1), fused(logprobs)
    return lambda: f(hidden, head, target)


def cross_entropy(sample, fused):
    hidden = random(sample["N"], sample["D"]).requires_grad_()
    head = random(sample["V"], sample["D"]).requires_grad_()
    target = integers(sample["V"], sample["N"])
    f = fused(lambda h, w, t: functional.cross_entropy(functional.linear(h, w).float(), t, reduction="sum"))
    return lambda: torch.autograd.grad(f(hidden, head, target), [hidden, head])


def adamw(sample, fused):
    """f32 parameters; with a master, the bf16 copy that the model reads is made after the step."""
    parameter = random(*lead(sample), kind=torch.float32).requires_grad_()
    parameter.grad = random(*lead(sample), kind=torch.float32)
    optimizer = torch.optim.AdamW([parameter], betas=(0.9, 0.999), weight_decay=0.1, fused=True)
    if dtype == torch.float32 or not sample.get("with_master"):
        return optimizer.step
    copy = parameter.detach().to(dtype)
    def step():
        optimizer.step()
        copy.copy_(parameter.detach())
    return step


def squared_sum(sample, fused):
    g = random(*lead(sample))
    return lambda: torch.linalg.vector_norm(g)


def draw(sample, fused):
    """Temperature 1 without filters only: what rollouts draw."""
    if not sample.get("plain"):
        return None
    hidden, head = random(sample["N"], sample["D"]) * sample["D"] ** -0.5, random(sample["V"], sample["D"])
    def call():
        p = torch.softmax(functional.linear(hidden, head).float(), -1)
        token = torch.multinomial(p, 1)
        return token, p.gather(1, token).log()
    return call


def onednn_product(rows, inner, outputs):
    """A product by oneDNN's inner product, with the weight in the layout that it likes best, as frameworks cache it."""
    def make(sample, fused):
        shapes = {"N": math.prod(lead(sample)), "D": sample["D"], "F": sample["F"]}
        x, w = random(shapes[rows], shapes[inner]), random(shapes[outputs], shapes[inner])
        packed = torch.ops.mkldnn._reorder_linear_weight(w, shapes[rows])
        return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    return make


ONEDNN_MAKERS = {
    "linear": onednn_product("N", "D", "F"),
    "linear_backward_input": onednn_product("N", "F", "D"),
    "linear_backward_weight": onednn_product("F", "N", "D"),
}
MAKERS = {
    "add": binary(torch.add), "sub": binary(torch.sub), "mul": binary(torch.mul), "div": binary(torch.div),
    "maximum": binary(torch.maximum), "greater": binary(torch.gt),
    "neg": unary(torch.neg), "exp": unary(torch.exp), "log": unary(torch.log), "sqrt": unary(torch.sqrt),
    "sigmoid": unary(torch.sigmoid), "cos": unary(torch.cos), "sin": unary(torch.sin), "tanh": unary(torch.tanh),
    "linear": linear, "linear_backward_input": linear_backward_input, "linear_backward_weight": linear_backward_weight,
    "matmul": matmul, "rms_norm": rms_norm, "layer_norm": layer_norm, "swiglu": swiglu, "embedding": embedding,
    "attention": attention, "linear_logprob": linear_logprob, "cross_entropy": cross_entropy, "adamw": adamw,
    "squared_sum_add": squared_sum,
}
CUDA_MAKERS = {
    "add_into": add_into, "sum": row_sum, "cast": cast, "dropout": dropout, "rope": rope, "add_rms_norm": add_rms_norm,
    "rms_norm_backward": rms_norm_backward, "layer_norm_backward": layer_norm_backward, "swiglu_backward": swiglu_backward,
    "embedding_backward": embedding_backward, "attention_backward": attention_backward, "attention_paged": attention,
    "sample": draw,
}
# What torch.compile fuses; products and attention it leaves to the libraries.
COMPILED = ["rms_norm", "rms_norm_backward", "add_rms_norm", "swiglu", "swiglu_backward", "rope", "cross_entropy"]
made = {}


def maker_of(library, op):
    makers = {**MAKERS, **CUDA_MAKERS} if cuda else MAKERS
    if library == "torch":
        return makers.get(op)
    if library == "onednn":
        return ONEDNN_MAKERS.get(op)
    if library == "compile":
        return makers[op] if op in COMPILED else None
    return with_backend(makers[op], library) if op.startswith("attention") else None


def libraries():
    found = {"torch": torch.__version__}
    if cuda:
        cudnn = torch.backends.cudnn.version() or 0
        return {**found, "compile": torch.__version__, "flash": torch.__version__, "cudnn": str(cudnn)}
    onednn = re.search(r"MKL-DNN v([\d.]+)", torch.__config__.show())
    return {**found, "onednn": onednn.group(1)} if onednn and torch.backends.mkldnn.is_available() else found


def compiled(function):
    torch._functorch.config.donated_buffer = False  # a backward pass is run again and again
    return torch.compile(function, dynamic=False)


def prepare(library, op, sample):
    """Calls with data of their own each, that are to take turns; None where there is no such op."""
    maker = maker_of(library, op)
    fused = compiled if library == "compile" else (lambda function: function)
    before = torch.cuda.memory_allocated() if cuda else 0
    call = maker(sample, fused) if maker else None
    if call is None:
        return None
    calls = [call]
    if cuda:
        size = max(1, torch.cuda.memory_allocated() - before)
        sets = min(MOST_SETS, math.ceil(ROTATED_BYTES / size))
        calls += [maker(sample, fused) for _ in range(sets - 1)]
    for one in calls:
        one()
    return calls


def seconds_of(calls, repeats):
    if not cuda:
        start = time.perf_counter()
        for i in range(repeats):
            calls[i % len(calls)]()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    for i in range(repeats):
        calls[i % len(calls)]()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def timed(request):
    subject = json.dumps([request["op"], request["sample"]], sort_keys=True)
    key = request["library"] + subject
    if key not in made:
        if not any(other.endswith(subject) for other in made):
            made.clear()  # one op at a time in memory
            if cuda:
                torch.cuda.empty_cache()
        try:
            made[key] = [prepare(request["library"], request["op"], request["sample"]), 0]
        except Exception:  # no such kernel here, no memory for it, or nothing that can be compiled
            made[key] = [None, 0]
            if cuda:
                torch.cuda.empty_cache()
    calls, repeats = made[key]
    if calls is None:
        return {}
    try:
        return {"seconds": measured(key, calls, repeats, request["budget"])}
    except RuntimeError:  # no memory for what a call makes
        made[key] = [None, 0]
        return {}


def measured(key, calls, repeats, budget):
    if repeats == 0:
        once = max(seconds_of(calls, len(calls)) / len(calls), 1e-7)
        repeats = made[key][1] = max(1, min(2000, math.ceil(budget / once)))
    return seconds_of(calls, repeats) / repeats


if cuda and not torch.cuda.is_available():
    sys.exit("this PyTorch finds no GPU")
print(json.dumps({"libraries": libraries()}), flush=True)
for line in sys.stdin:
    print(json.dumps(timed(json.loads(line))), flush=True)
