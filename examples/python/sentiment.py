"""Scores texts with a model that is slow to load. Each item is {"id": 1, "text": "..."}."""

import time

from tidegate_lines import Reject, serve


def load_model():
    time.sleep(1)  # A real one takes longer.
    good = dict.fromkeys(["good", "great", "love", "calm", "fast"], 1)
    bad = dict.fromkeys(["bad", "broken", "hate", "slow", "lost"], -1)
    return good | bad


MODEL = load_model()


def score(batch):
    for item in batch["payload"]:
        if not isinstance(item.get("text"), str):
            raise Reject(f"item {item.get('id')} has no text")
        words = item["text"].lower().split()
        batch["statistics"]["words"] = batch["statistics"].get("words", 0) + len(words)
        yield {"id": item["id"], "score": sum(MODEL.get(word, 0) for word in words)}


serve(score)
