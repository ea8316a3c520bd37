"""What this server serves: the bundle's identity, its rules, and what may be sent to it."""

import msgspec
from litestar import get
from litestar.di import NamedDependency

from bundle.manifest import Bundle
from bundle.rules import Rule
from serve.analysis.analyzer import Analyzer
from serve.analysis.report import ReportModel
from serve.search.messages import SearchModel


class BundleInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The student behind this server, and what embeds code for its code search, where it has one.

    `thresholds`: per rule, the confidence a finding needs to be shown.
    """

    model: ReportModel
    language: str
    context_length: int
    rules: tuple[Rule, ...]
    thresholds: dict[str, float]
    search: SearchModel | None


@get("/v1/bundle", tags=["bundle"], summary="What this server serves")
async def bundle_info(
    bundle: NamedDependency[Bundle],
    analyzer: NamedDependency[Analyzer],
    search_model: NamedDependency[SearchModel | None],
) -> BundleInfo:
    """The bundle's identity and its rules, as they may be named in a request."""
    return BundleInfo(
        model=analyzer.model,
        language=bundle.manifest.language,
        context_length=bundle.manifest.context_length,
        rules=bundle.catalogue.rules,
        thresholds=bundle.manifest.thresholds,
        search=search_model,
    )
