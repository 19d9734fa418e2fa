"""A writer of rewrites that answers at once."""

from collections import Counter

from helpers.synthetic_beavertails import BENIGN


class Parrot:
    """A writer that answers at once; `odd` has other answers for some questions."""

    name = "parrot"

    def __init__(self, **odd):
        self.odd, self.asked = odd, Counter()

    def ask(self, requests, on_answer):
        for request in requests:
            self.asked[request] += 1
            question = request.prompt.rsplit("uestion: ", 1)[1]
            if "yes or no" in request.prompt:
                answer = self.odd.get("verdict", "no")
                answer = answer(question) if callable(answer) else answer
            else:
                answer = " ".join(BENIGN.get(word, word) for word in question.split())
                answer = self.odd.get("rewrite", lambda question, good, attempt: good)(
                    question, answer, request.attempt
                )
            on_answer(request, answer)
