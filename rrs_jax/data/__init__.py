"""Questions and their speech: sources, rewrites, voices, and the manifests that hold them together.

manifest.py                    the file that training and evaluation read
starter.py                     the questions written for this project, and their spoken manifests
build.py                       the paper's sets from BeaverTails: beavertails.py reads, selection.py draws,
                               rewrite.py has Mirror's rewrites written, edits.py reads a person's,
                               spoken.py gives speech
authors.py                     the authors' own questions: authors_questions.py reads, authors_split.py splits
questions.py, duplicates.py    words of a question, near-duplicates; check.py checks a whole set
tables.py                      rows of JSON, CSV, Parquet and text files
writers.py                     language models that rewrite, and the ledger of their answers
service.py, chat_client.py     retries for every remote service; chat completions of a server
voices.py, engines.py          voices and speech engines; google_voice.py is the paper's
speech.py, speech_cache.py     many clips at once, each kept by its content; intelligibility.py hears them
distractors.py                 noise, spelt words and other variations of a set's clips
pack.py, show.py               a set as a folder for the hub, and as a page to listen to
"""
