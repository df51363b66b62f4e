"""Train the tiny model that ships with Merit Order: something to serve without a GPU or a network.

A random model would exercise the same code, but its answers are noise, and noise hides mistakes: a lost
chunk, a doubled token, two streams mixed up. This one has learned `faq.yaml` by heart, so anyone can see
whether an answer is whole. It is a plain Llama, which every engine loads without custom code.

    python tools/train_tiny_model.py            # train, save and check: a few minutes on two cores
    python tools/train_tiny_model.py --check    # only check the saved folder

The model card beside the weights is written by hand.
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
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "serving" / "meritorder" / "testing" / "tiny_model"
SEED, STEPS, PEAK_RATE, CONTEXT = 20, 700, 3e-3, 2048
# Rows x tokens of successive batches. Short rows teach the answers, long ones to find the question.
SHAPES = [(64, 64), (32, 128), (32, 128), (16, 256), (32, 128), (64, 64), (4, 1024), (2, CONTEXT)]
SPECIAL = PAD, SYSTEM, USER, ASSISTANT, END = "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
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

Piece = tuple[str, bool]  # a text, and whether the model learns to say it


class Lessons:
    """An endless, seeded supply of training rows made from the FAQ.

    A row is one long conversation (or raw text, for the completions API), cut at the row's length. Nothing is
    padded, and the model meets every question first, later, and after long irrelevant text.
    """

    def __init__(self, faq: dict[str, Any], seed: int) -> None:
        self.rng = random.Random(seed)
        self.entries: list[dict[str, Any]] = [*faq["faq"], faq["faq"][-1]]  # the last one is long: more of it
        self.off_topic: dict[str, Any] = faq["off_topic"]
        self.topics: list[str] = faq["off_topic"]["topics"]
        self.systems: list[str] = faq["system_prompts"]
        self.synonyms: list[tuple[str, str]] = [(usual, other) for usual, other in faq["synonyms"]]
        self.leads: list[str] = faq["leads"]
        self.tails: list[str] = faq["tails"]
        self.words = " ".join(self.texts()).split()

    def texts(self) -> list[str]:
        """What the tokenizer learns from; answers count more, because they are what is generated."""
        known = [*self.entries, self.off_topic]
        answers: list[str] = [entry["answer"] for entry in known] * 3
        return answers + [ask for entry in known for ask in entry["ask"]] + self.topics + self.systems

    def filler(self, most: int) -> str:
        return " ".join(self.rng.choices(self.words, k=self.rng.randint(1, most)))

    def unknown(self) -> str:
        """A question outside the FAQ, often with a made-up word: all that matters is that it is not known."""
        rng, kind = self.rng, self.rng.random()
        if kind < 0.1:
            return self.filler(60)
        if kind < 0.4:
            return str(rng.choice(self.off_topic["ask"]))
        topic = rng.choice(self.topics)
        if kind < 0.65:
            syllables = [rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(4)]
            topic = "".join(syllables[: rng.randint(1, 4)])
        return str(rng.choice(self.off_topic["templates"])).format(topic)

    def reworded(self, question: str) -> str:
        """The question as a person in a hurry might type it."""
        rng = self.rng
        if rng.random() < 0.12 and len(question) > 9:  # leave out a letter, or swap two
            at = rng.randrange(1, len(question) - 2)
            pair = question[at : at + 2]
            question = question[:at] + rng.choice([pair[0], pair[::-1]]) + question[at + 2 :]
        if rng.random() < 0.2:
            question = question.replace(*rng.choice(self.synonyms))
        if question.endswith("?"):
            lead, lower = rng.choice(self.leads), question[0].lower() + question[1:]
            framed = [lead + question, lead + lower, question + rng.choice(self.tails)]
            question = rng.choice([question] * 6 + [question[:-1]] * 3 + framed)
        style = rng.random()
        return question.lower() if style < 0.2 else question.upper() if style < 0.23 else question

    def turn(self) -> tuple[str, str]:
        if self.rng.random() < 0.22:
            return self.reworded(self.unknown()), str(self.off_topic["answer"])
        entry = self.rng.choice(self.entries)
        question = self.reworded(self.rng.choice(entry["ask"]))
        context = f"{self.filler(80)}\n\n" if self.rng.random() < 0.04 else ""
        return context + question, str(entry["answer"])

    def conversation(self) -> Iterator[Piece]:
        kind = self.rng.random()
        if kind < 0.5:
            text = self.rng.choice(self.systems) if kind < 0.4 else self.filler(200 if kind < 0.42 else 30)
            yield SYSTEM + text + END, False
        while True:
            question, answer = self.turn()
            yield USER + question + END + ASSISTANT, False
            yield answer + END, True

    def raw_text(self) -> Iterator[Piece]:
        """For the completions API, and for callers that ignore the end token: text without roles."""
        while True:
            question, answer = self.turn()
            if self.rng.random() < 0.6:
                before, after = self.rng.choice([("{}", " "), ("{}\n", ""), ("Q: {}\nA:", " ")])
                yield before.format(question), False
                yield after + answer + END, True
            else:
                yield str(self.rng.choice(self.entries)["answer"]) + END, True

    def batch(self, tokenizer: Tokenizer, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids, and labels that mask what the model should not learn to say."""
        inputs, labels = [], []
        for _ in range(rows):
            pieces = self.raw_text() if self.rng.random() < 0.2 else self.conversation()
            ids: list[int] = []
            learned: list[int] = []
            while len(ids) < length:
                text, learn = next(pieces)
                tokens = tokenizer.encode(text).ids
                ids += tokens
                learned += tokens if learn else [-100] * len(tokens)
            inputs.append(ids[:length])
            labels.append(learned[:length])
        return torch.tensor(inputs), torch.tensor(labels)


def train_tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    every_byte = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=list(SPECIAL), initial_alphabet=every_byte, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train(lessons: Lessons, tokenizer: Tokenizer, steps: int = STEPS) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,  # the smallest that vLLM's CPU attention supports
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.05)
    start = time.monotonic()
    for step in range(steps):
        rate = PEAK_RATE * min((step + 1) / 50, 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        inputs, labels = lessons.batch(tokenizer, *SHAPES[step % len(SHAPES)])
        loss = model(input_ids=inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 24 or step == steps - 1:
            seconds = time.monotonic() - start
            print(f"step {step + 1:4} of {steps}  loss {loss.item():.4f}  {seconds:4.0f} s", flush=True)
    return model


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    model.bfloat16().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    ids = {"eos_token_id": tokenizer.token_to_id(END), "pad_token_id": tokenizer.token_to_id(PAD)}
    files: dict[str, dict[str, Any]] = {
        # Sampling by default, as with any model, but hardly ever an improbable token.
        "generation_config.json": {"do_sample": True, "temperature": 0.2, "top_p": 0.9, **ids},
        # Written by hand: the class has this name in every version of transformers.
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END,
            "pad_token": PAD,
            "model_max_length": CONTEXT,
            "clean_up_tokenization_spaces": False,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def check(faq: dict[str, Any], folder: Path) -> bool:
    """Ask the saved model everything, greedily; true if 95 % of the trained wordings are answered exactly."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "max_new_tokens": 300}
    shares = []
    for wording in ("ask", "unseen"):
        entries = [*faq["faq"], faq["off_topic"]]
        cases = [(ask, entry["answer"]) for entry in entries for ask in entry[wording]]
        wrong = 0
        for first in range(0, len(cases), 64):
            part = cases[first : first + 64]
            chats = [[{"role": "user", "content": ask}] for ask, _ in part]
            texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
            prompts = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
            output = model.generate(**prompts, **greedy)[:, prompts.input_ids.shape[1] :]
            answers = tokenizer.batch_decode(output, skip_special_tokens=True)
            for (ask, expected), answer in zip(part, answers, strict=True):
                if answer != expected:
                    wrong += 1
                    print(f"  {ask!r} -> {answer[:60]!r}")
        shares.append(1 - wrong / len(cases))
        print(f"{wording}: {len(cases) - wrong} of {len(cases)} answers exact ({shares[-1]:.1%})", flush=True)
    return shares[0] >= 0.95


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only check the saved folder")
    parser.add_argument("--output", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    faq = yaml.safe_load((HERE / "faq.yaml").read_text())
    torch.set_num_threads(2)
    if not arguments.check:
        torch.manual_seed(SEED)
        torch.use_deterministic_algorithms(mode=True)
        lessons = Lessons(faq, SEED)
        tokenizer = train_tokenizer(lessons.texts())
        save(train(lessons, tokenizer), tokenizer, arguments.output)
    return 0 if check(faq, arguments.output) else 1


if __name__ == "__main__":
    sys.exit(main())
