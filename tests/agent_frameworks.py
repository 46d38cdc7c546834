"""Agent frameworks, unmodified, against the API: python agent_frameworks.py URL. Prints what passed; a failure raises.

It runs in an environment of its own: pip install 'pydantic-ai-slim[openai]' openai-agents
"""

import asyncio
import sys


def pydantic_ai(url: str) -> None:
    from pydantic import BaseModel
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.output import NativeOutput
    from pydantic_ai.providers.openai import OpenAIProvider

    class Sum(BaseModel):
        answer: int

    model = OpenAIChatModel("test", provider=OpenAIProvider(base_url=f"{url}/v1", api_key="any"))
    asked: list[tuple] = []
    agent = Agent(model)

    @agent.tool_plain
    def clock(city: str = "here", h: int = 12) -> str:
        """The time in a city."""
        asked.append((city, h))
        return "12:00"

    assert agent.run_sync("Time in Rome?").output == "It is noon." and sorted(asked) == [("Rome", 24), ("here", 12)]
    assert Agent(model, output_type=NativeOutput(Sum)).run_sync("2+2?").output.answer == 4

    async def streamed() -> str:
        async with Agent(model).run_stream("Hi") as result:
            return [text async for text in result.stream_text()][-1]

    assert asyncio.run(streamed()) == "Hello, world! é"
    print("pydantic-ai: tools, JSON schema, stream")


def openai_agents(url: str) -> None:
    from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
    from openai import AsyncOpenAI

    set_tracing_disabled(True)
    asked: list[tuple] = []

    @function_tool(strict_mode=False)
    def clock(city: str = "here", h: int = 12) -> str:
        """The time in a city."""
        asked.append((city, h))
        return "12:00"

    model = OpenAIChatCompletionsModel("test", AsyncOpenAI(base_url=f"{url}/v1", api_key="any"))
    found = Runner.run_sync(Agent("a", tools=[clock], model=model), "Time in Rome?")
    assert found.final_output == "It is noon." and sorted(asked) == [("Rome", 24), ("here", 12)]
    print("openai-agents: tools")


if __name__ == "__main__":
    pydantic_ai(sys.argv[1])
    openai_agents(sys.argv[1])
