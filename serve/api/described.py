"""What the OpenAPI document says beyond what a handler's signature does."""

from dataclasses import dataclass

from litestar.openapi.spec import OpenAPIMediaType, OpenAPIResponse, OpenAPIType, Operation, Schema


def also_answered_as(*media_types: str) -> type[Operation]:
    """An operation whose 200 has these forms too; each is text to the schema."""

    @dataclass
    class AlsoAnswered(Operation):
        def __post_init__(self) -> None:
            success = (self.responses or {})["200"]
            assert isinstance(success, OpenAPIResponse), "handlers describe their responses in place"
            text = OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING))
            success.content = {**(success.content or {}), **dict.fromkeys(media_types, text)}

    return AlsoAnswered
