"""One HTML page from result files only, for a run, for runs, for a study.

``arms`` says what runs came to, one by one and arm by arm; ``comparison`` reads what a study found and
says numbers as people do; ``sentences`` puts it in words; ``figures`` and ``class_figures`` draw it with
``drawing``; ``page`` binds all into one file with ``render`` and the templates. Nothing here imports torch,
transformers or a tagger; matplotlib and jinja2 are imported where a page is made.
"""
