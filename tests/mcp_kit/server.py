"""A server made with the protocol's own kit: `server.py sse|streamable-http PORT`."""

import sys

from mcp.server.mcpserver import MCPServer

server = MCPServer("library")


@server.tool()
def lend_book(isbn: str) -> str:
    """Lends a book"""
    return isbn


server.run(sys.argv[1], host="127.0.0.2", port=int(sys.argv[2]))
