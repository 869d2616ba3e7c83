#!/usr/bin/env python3
"""The rival of `caravan bench step` and `caravan bench generate`: the same work in PyTorch + transformers, same shapes.

usage: torch_peer.py [sft|dpo|generate] --model NAME --dtype {fp32|bf16} [--device {cpu|cuda}] [--threads N] [--steps N]
                     [--compile] [--pure] [--cached-reference] [--batch N] [--length N] [--prompt N] [--new-tokens N]

Prints one JSON line. sft, dpo: tokens per second of the median step, peak memory in MiB (resident, and of the GPU), the last
loss; bf16 means f32 master weights with bf16 autocast, which is what trainers do, and with --pure bf16 weights and moments,
which is faster and loses small updates. generate: new tokens per second of the median call at temperature 1; bf16 means bf16
weights. Weights and tokens are random. Needs torch and transformers.
"""
import argparse
import json
import os
import resource
import statistics
import time

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

WARM_UP_STEPS = 2
WARM_UP_SECONDS = 2  # of generating, one call at least


def llama(vocabulary, hidden, layers, heads, key_heads, inner, tied=True, context=512, theta=10000.0):
    """A configuration of the Llama family."""
    return LlamaConfig(vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
                       num_attention_heads=heads, num_key_value_heads=key_heads, max_position_embeddings=context,
                       tie_word_embeddings=tied, rope_theta=theta)


def shapes(name):
    """Model class, configuration, sequences, tokens in each, measured steps: as lib/cli/bench_shapes.ts has them."""
    if name == "tiny":
        return LlamaForCausalLM, llama(512, 128, 4, 4, 2, 352), 32, 128, 20
    if name == "small":
        return LlamaForCausalLM, llama(32000, 288, 6, 6, 6, 768), 8, 256, 8
    if name == "llama1b":
        config = llama(128256, 2048, 16, 32, 8, 8192, context=8192, theta=500000.0)
        return LlamaForCausalLM, config, 8, 2048, 8
    if name == "llama8b":
        config = llama(128256, 4096, 32, 32, 8, 14336, tied=False, context=8192, theta=500000.0)
        return LlamaForCausalLM, config, 2, 4096, 4
    config = Qwen2Config(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                         num_attention_heads=14, num_key_value_heads=2, max_position_embeddings=8192,
                         tie_word_embeddings=True)
    return (Qwen2ForCausalLM, config, 2, 256, 3) if name == "base" else (Qwen2ForCausalLM, config, 8, 2048, 8)


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", nargs="?", choices=["sft", "dpo", "generate"], default="sft")
    parser.add_argument("--model", choices=["tiny", "small", "base", "qwen05b", "llama1b", "llama8b"], default="tiny")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--length", type=int)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--pure", action="store_true")
    parser.add_argument("--cached-reference", action="store_true")
    return parser.parse_args()


def clock(args):
    """Seconds, when all that was asked of the device is done."""
    if args.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def new_model(args, model_class, config):
    """Random weights, made where they are used: those of billions of parameters take minutes on a processor."""
    pure = args.dtype == "bf16" and (args.pure or args.mode == "generate")
    torch.set_default_dtype(torch.bfloat16 if pure else torch.float32)
    with torch.device(args.device):
        model = model_class(config)
    torch.set_default_dtype(torch.float32)
    return model


def peak_device_mib(args):
    return torch.cuda.max_memory_allocated() // 2**20 if args.device == "cuda" else None


def answer_means(forward, ids, mask):
    """Mean log-probability of the masked tokens of each sequence."""
    logits = forward(input_ids=ids).logits[:, :-1].float()
    logp = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return (logp * mask[:, 1:]).sum(-1) / mask[:, 1:].sum(-1)


def sft_loss(forward, ids, vocabulary):
    logits = forward(input_ids=ids).logits
    return functional.cross_entropy(logits[:, :-1].reshape(-1, vocabulary).float(), ids[:, 1:].reshape(-1))


def dpo_loss(forward, reference, ids):
    """Length-normalised DPO with beta 5; the first half of the rows is chosen, a quarter of each row is its prompt."""
    half = ids.shape[0] // 2
    mask = torch.ones_like(ids, dtype=torch.float32)
    mask[:, : ids.shape[1] // 4] = 0
    policy = answer_means(forward, ids, mask)
    known = torch.zeros_like(policy)
    if reference is not None:
        with torch.no_grad():
            known = answer_means(reference, ids, mask)
    gain = policy - known
    return -functional.logsigmoid(5.0 * (gain[:half] - gain[half:])).mean()


def generate(args, model, batch):
    model.eval()
    times = []
    calls = 0
    warm = time.perf_counter() + WARM_UP_SECONDS
    while len(times) < (args.steps or 3):
        is_warm = calls > 0 and time.perf_counter() >= warm
        calls += 1
        ids = torch.randint(0, model.config.vocab_size, (batch, args.prompt), device=args.device)
        start = clock(args)
        with torch.no_grad():
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=args.new_tokens,
                           min_new_tokens=args.new_tokens, do_sample=True, temperature=1.0, top_k=0, pad_token_id=0)
        if is_warm:
            times.append(clock(args) - start)
    median = statistics.median(times)
    print(json.dumps({
        "peer": "torch",
        "version": torch.__version__,
        "mode": "generate",
        "model": args.model,
        "dtype": args.dtype,
        "device": args.device,
        "batch": batch,
        "tokens_per_s": round(batch * args.new_tokens / median, 1),
        "call_s": round(median, 5),
        "peak_device_mib": peak_device_mib(args),
    }))


def main():
    args = parse()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    model_class, config, batch, length, steps = shapes(args.model)
    batch, length = args.batch or batch, args.length or length
    config._attn_implementation = "sdpa"
    model = new_model(args, model_class, config)
    if args.mode == "generate":
        return generate(args, model, batch)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    forward = torch.compile(model) if args.compile else model
    reference = None
    if args.mode == "dpo" and not args.cached_reference:
        reference = new_model(args, model_class, config)
        reference.load_state_dict(model.state_dict())
        reference.eval().requires_grad_(False)
        reference = torch.compile(reference) if args.compile else reference
    autocast = torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.dtype == "bf16" and not args.pure)
    times = []
    for step in range((args.steps or steps) + WARM_UP_STEPS):
        ids = torch.randint(0, config.vocab_size, (batch, length), device=args.device)
        start = clock(args)
        with autocast:
            sft = args.mode == "sft"
            loss = sft_loss(forward, ids, config.vocab_size) if sft else dpo_loss(forward, reference, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step >= WARM_UP_STEPS:
            times.append(clock(args) - start)
    median = statistics.median(times)
    print(json.dumps({
        "peer": "torch",
        "version": torch.__version__,
        "mode": args.mode,
        "model": args.model,
        "dtype": args.dtype,
        "device": args.device,
        "compile": args.compile,
        "pure": args.pure,
        "params": parameters,
        "batch": batch,
        "seq": length,
        "tokens_per_s": round(batch * length / median, 1),
        "step_s": round(median, 5),
        "gflops": round(6 * parameters * batch * length / median / 1e9, 2),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "peak_device_mib": peak_device_mib(args),
        "loss": round(float(loss.detach()), 4),
    }))


main()
