"""Fine-tuning: a loss on the assistant's words alone, and a model whose answers change as intended."""

import json

import pytest
import torch
from peer import peer_of
from train_cases import settings

from anychip.chat import chat_format, encode_messages
from anychip.chips import open_chip
from anychip.errors import InputError
from anychip.model import Layout, State
from anychip.serve.models import open_model
from anychip.text.packing import PackedBatches
from anychip.text.tokenizer import open_tokenizer
from anychip.train import Trainer
from anychip.train.chats import chat_pieces, chat_rows

WORDS = open_tokenizer("anychip-4096")
TALK = [{"role": "user", "content": "Who hunts the whale?"}, {"role": "assistant", "content": "Ahab does."},
        {"role": "user", "content": "With what?"}, {"role": "assistant", "content": "With a harpoon."}]


def write(path, *chats):
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")
    return path


def learnt(targets):
    return WORDS.decode([int(token) for token in targets if token >= 0])


def test_only_what_the_assistant_says_is_learnt(tmp_path):
    inputs, targets, lengths = chat_rows(write(tmp_path / "a.jsonl", {"messages": TALK}), WORDS, 64).at(0)
    assert learnt(targets) == "Ahab does.<｜end▁of▁sentence｜>With a harpoon.<｜end▁of▁sentence｜>"
    whole = WORDS.encode(encode_messages(TALK))
    assert inputs[: lengths[0]].tolist() == whole[:-1]
    kept = [i for i in range(lengths[0]) if targets[i] >= 0]
    assert [whole[i + 1] for i in kept] == targets[kept].tolist()


def test_tokens_of_pieces_are_those_of_the_whole_text():
    calls = [{"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sea"}'}}]
    chat = {"messages": [*TALK[:1], {"role": "assistant", "content": "Let me see.", "tool_calls": calls},
                         {"role": "tool", "tool_call_id": "1", "content": "a spout"}, TALK[1]],
            "tools": [{"type": "function", "function": {"name": "look", "parameters": {}}}]}
    (pieces,) = chat_pieces(chat, chat_format("v4"))
    ids = [token for text, _ in pieces for token in WORDS.encode(text)]
    assert ids == WORDS.encode("".join(text for text, _ in pieces))
    said = "".join(text for text, says in pieces if says)
    assert "tool_calls>" in said and said.endswith("Ahab does.<｜end▁of▁sentence｜>") and "a spout" not in said


def test_turns_whose_reasoning_is_dropped_later_are_samples_of_their_own():
    messages = [TALK[0], TALK[1] | {"reasoning_content": "The captain."}, TALK[2],
                TALK[3] | {"reasoning_content": "A spear."}]
    samples = chat_pieces({"messages": messages}, chat_format("v4"))
    said = ["".join(text for text, says in pieces if says) for pieces in samples]
    end = "<｜end▁of▁sentence｜>"
    assert said == [f"The captain.</think>Ahab does.{end}", f"A spear.</think>With a harpoon.{end}"]
    assert "The captain." not in "".join(text for text, _ in samples[1])


@pytest.mark.parametrize(("family", "end"), [("v3", "<｜end▁of▁sentence｜>"), ("v32", "<｜end▁of▁sentence｜>"),
                                             ("glm5", "<|user|>"), ("qwen3", "<|im_end|>\n")])
def test_every_format_teaches_the_answer_and_its_end(family, end):
    form = chat_format(family)
    for thinking in (False, True):
        samples = chat_pieces({"messages": TALK, "thinking": thinking}, form)
        said = [text for pieces in samples for text, says in pieces if says]
        answers = ["Ahab does." + end, "With a harpoon." + end]
        assert all(text.endswith(answer) for text, answer in zip(said, answers, strict=True))
        prompt = form.encode(TALK[:3], thinking=thinking)
        assert "".join(text for text, _ in samples[-1]).startswith(prompt)
    with pytest.raises(InputError, match="does not begin this turn as it asks for it"):
        chat_pieces({"messages": TALK[:2]}, chat_format("glm5", template="{{ add_generation_prompt }}"))


def test_chats_that_cannot_be_learnt_from_are_named_together(tmp_path):
    path = write(tmp_path / "a.jsonl", {"messages": TALK[:1]}, {"messages": [{"role": "wizard", "content": "x"}]},
                 {"text": "no chat"})
    with pytest.raises(InputError, match=r"line 1: no message of the as.*\n  line 2: .*wizard.*\n  line 3: a chat"):
        chat_rows(path, WORDS, 64)


def test_mtp_reads_the_prompts_tokens_although_they_are_no_targets(tmp_path):
    from anychip.parallel import Batch
    from anychip.train.objective import next_ids

    batch = Batch.of(*PackedBatches(chat_rows(write(tmp_path / "a.jsonl", {"messages": TALK}), WORDS, 64), 1, 0).at(0))
    whole = WORDS.encode(encode_messages(TALK))
    assert next_ids(batch)[: len(whole) - 1].tolist() == whole[1:]


def answer(model, text, count):
    """Greedy tokens after a question."""
    ids = WORDS.encode(encode_messages([{"role": "user", "content": text}]))
    state, new = State(model.config, 128), []
    with torch.inference_mode():
        hidden = model(torch.tensor(ids), Layout((0,), (len(ids),)), state).hidden_Td
        while len(new) < count and (not new or new[-1] != WORDS.eos_id):
            new.append(int(model.logits(hidden[-1:]).argmax()))
            hidden = model(torch.tensor(new[-1:]), Layout((state.num_tokens[0],), (1,)), state).hidden_Td
    return WORDS.decode(new)


def test_fine_tuning_changes_answers_and_the_export_loads_in_transformers(tmp_path):
    facts = {"Who hunts the whale?": "Captain Ahab.", "What is the ship called?": "The Pequod.",
             "Who tells the story?": "Call me Ishmael."}
    path = write(tmp_path / "chats.jsonl", *({"messages": [{"role": "user", "content": q},
                                                           {"role": "assistant", "content": a}]}
                                             for q, a in facts.items()))
    chip = open_chip("cpu")
    model, _ = open_model("nano", chip)
    before = {question: answer(model, question, 8) for question in facts}
    steps = 25
    plan = settings(steps=steps, batch=1, length=64, learning_rate=3e-3, warmup_steps=2)
    work = Trainer(model, chip, PackedBatches(chat_rows(path, WORDS, 64), 1, 0), plan)
    losses = [work.step().loss for _ in range(steps)]
    assert losses[0] > 4 and losses[-1] < 0.1
    assert not any(before[q].startswith(a) for q, a in facts.items())
    assert {q: answer(model, q, 8) for q in facts} == {q: a + "<｜end▁of▁sentence｜>" for q, a in facts.items()}
    ids = torch.tensor(WORDS.encode(encode_messages(TALK[:1])))
    with torch.no_grad():
        ours, theirs = model.logits(model(ids, Layout.whole([len(ids)])).hidden_Td), peer_of(model)(ids[None]).logits[0]
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
