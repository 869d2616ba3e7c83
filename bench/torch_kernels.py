#!/usr/bin/env python3
"""The rival of `caravan bench kernels`: answers one request a line with the time of the same op in PyTorch.

usage: torch_kernels.py --threads N --dtype {fp32|bf16}

The first line out says {"version", "onednn"}. A request is {"library", "op", "sample", "budget"} with the sample of the op
table; the answer is {"seconds"}, of one call, or {} where the library ("torch", or "onednn" for matrix products) has no such
op. Data is made once for each op and sample.
"""
import argparse
import json
import math
import re
import sys
import time

import torch
from torch.nn import functional

parser = argparse.ArgumentParser()
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
args = parser.parse_args()
torch.set_num_threads(args.threads)
dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32


def random(*shape, kind=None):
    return torch.randn(*shape, dtype=kind or dtype)


def free(sample, name):
    return random(*sample["shapes"][name])


def binary(function):
    def make(sample):
        a, b = free(sample, "a"), free(sample, "b")
        return lambda: function(a, b)
    return make


def unary(function):
    def make(sample):
        x = free(sample, "x").abs() + 0.01
        return lambda: function(x)
    return make


def lead(sample):
    return sample.get("lead") or [sample["N"]]


def linear(sample):
    x, w = random(*lead(sample), sample["D"]), random(sample["F"], sample["D"])
    return lambda: functional.linear(x, w)


def linear_backward_input(sample):
    dy, w = random(*lead(sample), sample["F"]), random(sample["F"], sample["D"])
    return lambda: dy @ w


def linear_backward_weight(sample):
    dy, x = random(*lead(sample), sample["F"]), random(*lead(sample), sample["D"])
    return lambda: (dy.T @ x).float()


def matmul(sample):
    a = random(sample["G"], sample["A1"], sample["A2"])
    b = random(sample["G"], sample["B1"], sample["B2"])
    a = a.transpose(1, 2) if sample["transpose_a"] else a
    b = b.transpose(1, 2) if sample["transpose_b"] else b
    return lambda: torch.bmm(a, b)


def rms_norm(sample):
    x, w = random(*lead(sample), sample["D"]), random(sample["D"])
    return lambda: functional.rms_norm(x, (sample["D"],), w, sample.get("eps", 1e-6))


def layer_norm(sample):
    x = random(*lead(sample), sample["D"])
    return lambda: functional.layer_norm(x, (sample["D"],))


def swiglu(sample):
    gate, up = random(*lead(sample), sample["F"]), random(*lead(sample), sample["F"])
    return lambda: functional.silu(gate) * up


def embedding(sample):
    ids, w = torch.randint(0, sample["V"], (sample["N"],)), random(sample["V"], sample["D"])
    return lambda: functional.embedding(ids, w)


def attention(sample):
    """Equal lengths only: PyTorch's CPU attention takes a batch, not sequences end to end."""
    queries, keys = set(sample["queries"]), set(sample["keys"])
    if len(queries) != 1 or len(keys) != 1 or sample["window"] != 0:
        return None
    S, repeats = sample["S"], sample["H"] // sample["K"]
    q = random(S, sample["H"], queries.pop(), sample["C"])
    k = random(S, sample["K"], keys.pop(), sample["C"]).repeat_interleave(repeats, 1)
    v = torch.randn_like(k)
    causal = q.shape[2] > 1
    return lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=sample["scale"])


def linear_logprob(sample):
    hidden, head = random(sample["N"], sample["D"]), random(sample["V"], sample["D"])
    target = torch.randint(0, sample["V"], (sample["N"], 1))
    def call():
        logits = functional.linear(hidden, head).float()
        return logits.gather(1, target) - torch.logsumexp(logits, 1, keepdim=True)
    return call


def cross_entropy(sample):
    hidden = random(sample["N"], sample["D"]).requires_grad_()
    head = random(sample["V"], sample["D"]).requires_grad_()
    target = torch.randint(0, sample["V"], (sample["N"],))
    def call():
        loss = functional.cross_entropy(functional.linear(hidden, head).float(), target, reduction="sum")
        return torch.autograd.grad(loss, [hidden, head])
    return call


def adamw(sample):
    parameter = torch.randn(*lead(sample)).requires_grad_()
    parameter.grad = torch.randn(*lead(sample))
    optimizer = torch.optim.AdamW([parameter], betas=(0.9, 0.999), weight_decay=0.1, fused=True)
    return optimizer.step


def squared_sum(sample):
    g = random(*lead(sample))
    return lambda: torch.linalg.vector_norm(g)


def onednn_product(rows, inner, outputs):
    """A product by oneDNN's inner product, with the weight in the layout that it likes best, as frameworks cache it."""
    def make(sample):
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
made = {}


def maker_of(request):
    return (ONEDNN_MAKERS if request["library"] == "onednn" else MAKERS).get(request["op"])


def onednn_version():
    found = re.search(r"MKL-DNN v([\d.]+)", torch.__config__.show())
    return found.group(1) if found and torch.backends.mkldnn.is_available() else None


def timed(request):
    subject = json.dumps([request["op"], request["sample"]], sort_keys=True)
    key = request["library"] + subject
    if key not in made:
        if not any(other.endswith(subject) for other in made):
            made.clear()  # one op at a time in memory
        maker = maker_of(request)
        try:
            made[key] = [maker(request["sample"]) if maker else None, 0]
            if made[key][0]:
                made[key][0]()
        except RuntimeError:  # no such kernel for this type on this processor
            made[key] = [None, 0]
    call, repeats = made[key]
    if call is None:
        return {}
    if repeats == 0:
        start = time.perf_counter()
        call()
        repeats = made[key][1] = max(1, min(2000, math.ceil(request["budget"] / max(time.perf_counter() - start, 1e-7))))
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return {"seconds": (time.perf_counter() - start) / repeats}


print(json.dumps({"version": torch.__version__, "onednn": onednn_version()}), flush=True)
for line in sys.stdin:
    print(json.dumps(timed(json.loads(line))), flush=True)
