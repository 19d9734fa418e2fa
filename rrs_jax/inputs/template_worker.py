"""The process that renders a foreign chat template: a line of JSON in, a line of JSON out.

It imports nothing of this package, and ends where a template takes too much time or memory.
"""

import json
import resource
import signal
import sys

MOST_BYTES = 2**30  # beyond what the process has when it begins
MOST_LETTERS = 2_000_000


def main() -> None:
    """Reads {"template", "seconds"} and then {"messages", "tokens"} a line, until there are no more."""
    from transformers.utils.chat_template_utils import render_jinja_template

    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    most = pages * resource.getpagesize() + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    settings = json.loads(sys.stdin.readline())
    for line in sys.stdin:
        asked = json.loads(line)
        signal.alarm(settings["seconds"])  # nobody handles the signal, so it ends the process
        try:
            rendered, _ = render_jinja_template(
                conversations=[asked["messages"]],
                chat_template=settings["template"],
                add_generation_prompt=True,
                **asked["tokens"],
            )
            if len(rendered[0]) > MOST_LETTERS:
                raise ValueError(f"it writes {len(rendered[0])} letters")
            said = {"text": rendered[0]}
        except BaseException as error:
            said = {"error": (str(error) or type(error).__name__)[:1000]}
        signal.alarm(0)
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
