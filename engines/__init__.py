"""What runs and judges an artifact: sessions, diffusers pipelines on engines, measurements, the report.

Everything here finds its way by the manifest alone, so an artifact can be copied to another machine and read there.
`import engines` needs neither torch nor diffusers; they are imported when a pipeline is built.
"""

from engines.pipeline import EnginePipeline, as_diffusers, load

__all__ = ["EnginePipeline", "as_diffusers", "load"]
