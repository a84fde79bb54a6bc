# RabbitMQ as Debian has it, with what the public image is used for: the management UI, and settings in /etc/rabbitmq/conf.d.
ARG DEBIAN=trixie
FROM tidegate-test/debian:${DEBIAN}
RUN apt-get update && apt-get install -y --no-install-recommends rabbitmq-server && rm -rf /var/lib/apt/lists/* \
 && rm -rf /var/lib/rabbitmq/mnesia /var/lib/rabbitmq/.erlang.cookie \
 && rabbitmq-plugins enable --offline rabbitmq_management rabbitmq_prometheus \
 && chown -R rabbitmq:rabbitmq /etc/rabbitmq /var/lib/rabbitmq
USER rabbitmq
VOLUME /var/lib/rabbitmq
EXPOSE 5672 15672
ENTRYPOINT ["/usr/lib/rabbitmq/bin/rabbitmq-server"]
