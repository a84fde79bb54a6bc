# Docker Compose, for machines whose packages have none that knows deploy/compose.
FROM tidegate-test/debian:trixie
RUN apt-get update && apt-get install -y --no-install-recommends docker-cli docker-compose && rm -rf /var/lib/apt/lists/*
ENTRYPOINT ["docker", "compose"]
