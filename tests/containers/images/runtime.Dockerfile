# The public runtime image's likeness: root certificates, time zones, and nobody to log in as.
FROM tidegate-test/debian:bookworm AS files
RUN apt-get update && apt-get install -y --no-install-recommends tzdata && rm -rf /var/lib/apt/lists/*
RUN mkdir -p /image/etc/ssl/certs /image/usr/share /image/tmp /image/lib /image/lib64 \
 && chmod 1777 /image/tmp \
 && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ \
 && cp -a /usr/share/zoneinfo /image/usr/share/ \
 && echo 'hosts: files dns' >/image/etc/nsswitch.conf \
 && echo 'nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin' >/image/etc/passwd \
 && echo 'nonroot:x:65532:' >/image/etc/group

FROM scratch
COPY --from=files /image/ /
USER 65532:65532
