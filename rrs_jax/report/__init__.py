"""Tables, figures and pages of finished runs. Reads the files of run folders, never live objects.

results.py               runs, their recipes and their places in the paper's tables
summaries.py             the summaries of runs, and how rates are written
table.py                 the table of rates; details.py has what it leaves out, ranking.py orders runs
paper_tables.py          the paper's tables 2, 3 and 4; table_formats.py writes them
page.py                  the report page, of sections.py, samples.py (clips and answers) and provenance.py
figures.py               the page's figures, drawn by plots.py; training_figures.py has those of the training
separation.py            figure 2 of the paper and how far questions are apart
publish.py               the lines and tables that are published
authors_state_files.py   the authors' published states; authors_states.py measures them,
                         authors_states_page.py makes their page
"""
