"""The rules of SARIF 2.1.0 for all that clipguard writes, as a JSON schema: nothing else may stand there.

By the standard (OASIS, sections 3.11 to 3.58): required properties, types, enumerations and bounds.
"""

TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
LEVEL = {"enum": ["none", "note", "warning", "error"]}


def exactly(required, **properties):
    """Return the schema of an object with these properties alone, of which some are required."""
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def several(item, **bounds):
    """Return the schema of a list."""
    return {"type": "array", "items": item, **bounds}


MESSAGE = exactly(["text"], text=TEXT)
RULE = exactly(
    ["id"],
    id=TEXT,
    name=TEXT,
    shortDescription=MESSAGE,
    fullDescription=MESSAGE,
    help=MESSAGE,
    defaultConfiguration=exactly([], level=LEVEL),
    properties={"type": "object"},
)
LOCATION = exactly(
    [],
    physicalLocation=exactly(
        ["artifactLocation"],
        # By RFC 3986: relative, or absolute as a file; no space, nothing beyond ASCII.
        artifactLocation=exactly(
            ["uri"],
            uri={
                "type": "string",
                "pattern": r"^(?:file:///)?(?:[A-Za-z0-9_.~/!$&'()*+,;=@-]|%[0-9A-F]{2})+$",
            },
            uriBaseId=TEXT,
        ),
        region=exactly(["startLine"], startLine={"type": "integer", "minimum": 1}),
    ),
    logicalLocations=several(exactly([], fullyQualifiedName=TEXT, name=TEXT, kind=TEXT), uniqueItems=True),
)
RESULT = exactly(
    ["message"],
    ruleId=TEXT,
    ruleIndex={"type": "integer", "minimum": -1},
    level=LEVEL,
    message=MESSAGE,
    locations=several(LOCATION),
    partialFingerprints={"type": "object", "additionalProperties": {"type": "string"}},
    rank={"type": "number", "minimum": -1, "maximum": 100},
    baselineState={"enum": ["new", "unchanged", "updated", "absent"]},
    properties={"type": "object"},
)
RUN = exactly(
    ["tool"],
    tool=exactly(
        ["driver"],
        driver=exactly(["name"], name=TEXT, version=TEXT, semanticVersion=TEXT, rules=several(RULE)),
    ),
    invocations=several(
        exactly(
            ["executionSuccessful"],
            executionSuccessful={"type": "boolean"},
            exitCode={"type": "integer"},
            toolExecutionNotifications=several(exactly(["message"], level=LEVEL, message=MESSAGE)),
        )
    ),
    originalUriBaseIds={
        "type": "object",
        "additionalProperties": exactly([], description=MESSAGE, uri={"type": "string", "pattern": "/$"}),
    },
    columnKind={"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
    results=several(RESULT),
    properties={"type": "object"},
)
SARIF = exactly(
    ["version", "runs"],
    **{"$schema": {"type": "string", "format": "uri"}},
    version={"const": "2.1.0"},
    runs=several(RUN),
)
