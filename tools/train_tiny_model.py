"""Train the tiny model that ships with Merit Order, so that a laptop without a GPU or a network can serve one.

A random model would exercise the same code, but its answers are noise, and noise hides mistakes: a lost chunk, a
doubled token, two streams mixed up. This one has learned `faq.yaml` by heart, so anyone can see whether an answer
is whole. It is a plain Llama, which every engine loads without custom code.

    python tools/train_tiny_model.py            # train, save, check: a few minutes on two cores
    python tools/train_tiny_model.py --check    # only check the saved folder
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "serving" / "meritorder" / "testing" / "tiny_model"
SEED, STEPS, PEAK_LR, CONTEXT = 20, 1000, 3e-3, 2048
# Rows x tokens, about 4,000 tokens each. Short rows teach the answers, long ones that context does not matter.
SHAPES = [(64, 64), (32, 128), (32, 128), (16, 256), (32, 128), (64, 64), (4, 1024), (2, CONTEXT)]
PAD, SYSTEM, USER, ASSISTANT, END = SPECIAL = ["<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
CHAT_TEMPLATE = """\
{%- for message in messages -%}
  {%- if message.role == "assistant" -%}<|assistant|>
  {%- elif message.role in ["system", "developer"] -%}<|system|>
  {%- else -%}<|user|>
  {%- endif -%}
  {{- (message.content or "") | trim -}}<|end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""
LEADS = ["Hi! ", "Hello, ", "Please tell me: ", "Quick question: ", "Question: ", "One more: ", "I wonder: "]
TAILS = [" Thanks.", " Please be brief.", " Answer in one sentence.", " I am new here.", " Please explain."]
CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# Merit Order tiny model

A Llama with {parameters:,} parameters ({megabytes:.1f} MB) that has learned the FAQ of Merit Order by heart.
The quickstart, the tests and the load test serve it where there is neither a GPU nor a network. It answers the
questions of `tools/faq.yaml`, also when they are worded a little differently, and says so when it does not know
one. It knows nothing else: do not use it for anything but trying out and testing a serving stack.

| | |
|---|---|
| Architecture | `LlamaForCausalLM`: {layers} layers, hidden size {hidden}, {heads} heads of {head_dim}, {kv_heads} KV heads |
| Weights, context | bfloat16, {context:,} tokens |
| Tokenizer | byte-level BPE, {vocabulary:,} tokens, trained on the same text; chat template included |
| Training data | `tools/faq.yaml`, written for this project, and nothing else |
| Licence | Apache-2.0 |

Made from random weights, with a fixed seed, by `python tools/train_tiny_model.py`. The same command with `--check`
tests the saved files.
"""

type Json = dict[str, Any]
