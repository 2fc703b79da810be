// The documentation of all routes, by Swagger UI.
window.SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  // Its badge would be fetched from another host.
  validatorUrl: null,
});
