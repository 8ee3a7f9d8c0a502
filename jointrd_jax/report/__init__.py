"""One page that shows what runs did: python -m jointrd_jax.report RUN [RUN ...] --out report.html"""
