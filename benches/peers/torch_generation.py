"""Hugging Face transformers' prefill and decode on the CPU, as benches/generation.rs times ours.

    THREADS=2 python torch_generation.py FOLDER [PROMPT [TOKENS [ROUNDS]]]

Prints the same columns. The model is used directly, with its own cache: `generate` would add its own overhead.
"""

import os
import resource
import sys
import time

import torch
from transformers import AutoModelForCausalLM


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.inference_mode()
def main():
    path = sys.argv[1]
    prompt, count, rounds = [int(a) for a in (sys.argv[2:5] + ["512", "64", "3"][len(sys.argv) - 2 :])]
    torch.set_num_threads(int(os.environ.get("THREADS", "2")))
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()
    loaded = time.perf_counter() - started
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    after_load = peak()
    tokens = torch.randint(0, model.config.vocab_size, (1, prompt))
    print("load_s,weights_mib,peak_after_load_mib,prompt,prefill_tokens_s,decode_tokens_s,cache_mib,peak_mib,checksum")
    for _ in range(rounds):
        started = time.perf_counter()
        out = model(tokens, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        prefill = prompt / (time.perf_counter() - started)
        started = time.perf_counter()
        for _ in range(count):
            out = model(token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1:].argmax(-1)
        decode = count / (time.perf_counter() - started)
        print(f"{loaded:.3f},{weights:.0f},{after_load:.0f},{prompt},{prefill:.1f},{decode:.2f},,{peak():.0f},", flush=True)


main()
